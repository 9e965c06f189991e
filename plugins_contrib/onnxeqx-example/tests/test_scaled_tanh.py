"""`ScaledTanh` against NumPy, in a model."""

import numpy as np
import onnx
import pytest

import onnxeqx

MODEL = """
<ir_version: 8, opset_import: ["" : 17, "org.onnxeqx.example" : 1]>
scaled (float[batch, 3] x) => (float[batch, 3] y)
{
    y = org.onnxeqx.example.ScaledTanh%s (x)
}
"""


@pytest.mark.parametrize(
    ("attributes", "alpha", "beta"),
    [("", 1.0, 1.0), ("<alpha = 1.5, beta = 0.25>", 1.5, 0.25)],
    ids=["defaults", "given"],
)
def test_scaled_tanh_is_numpys(attributes, alpha, beta):
    model = onnxeqx.load_model(onnx.parser.parse_model(MODEL % attributes))
    x = np.linspace(-4, 4, 6, dtype=np.float32).reshape(2, 3)
    y = model(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, alpha * np.tanh(beta * x), rtol=1e-5)
