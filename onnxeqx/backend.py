"""onnxeqx as an ONNX backend, so that the ONNX project's own suite and its scoreboard run it unchanged.

```python
import onnx.backend.test
import onnxeqx.backend

suite = onnx.backend.test.BackendTest(onnxeqx.backend, __name__)
```

https://github.com/onnx/onnx/blob/main/docs/ImplementingAnOnnxBackend.md
"""

from typing import Any

import jax
import numpy as np
import onnx
import onnx.backend.base

from ._load import load_model


class BackendRep(onnx.backend.base.BackendRep):
    """A prepared model. ONNX has 64-bit types, so it runs with `jax_enable_x64`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        with jax.enable_x64(True):
            self.model = load_model(model)
        self._inputs = [value.name for value in model.graph.input if value.name in self.model.input_names]

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs in graph order: NumPy arrays, lists of them for sequences, `None` for empty optionals.

        **Arguments:**

        - `inputs`: a list in graph order, or a dictionary by name.
        """
        given = inputs if isinstance(inputs, dict) else dict(zip(self._inputs, inputs, strict=False))
        with jax.enable_x64(True):
            results = self.model(**given)
            results = results if isinstance(results, tuple) else (results,)
            return tuple(to_numpy(result) for result in results)


def to_numpy(value: Any) -> Any:
    """Arrays as NumPy; lists, dictionaries and `None` keep their structure."""
    if isinstance(value, list):
        return [to_numpy(item) for item in value]
    if isinstance(value, dict):
        return {key: to_numpy(item) for key, item in value.items()}
    return None if value is None else np.asarray(value)


class OnnxeqxBackend(onnx.backend.base.Backend):
    """The interface `onnx.backend.base.Backend`; its methods are also functions of this module."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> BackendRep:
        """Loads a model.

        **Raises:** as [`onnxeqx.load`][].
        """
        return BackendRep(model)

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Runs one node. Its operator's version is the newest, or that of `opset_version`."""
        opset = kwargs.get("opset_version") or _newest(node)
        given = dict(zip([name for name in node.input if name], map(np.asarray, inputs), strict=True))
        values = [onnx.helper.make_tensor_value_info(name, _data_type(x), x.shape) for name, x in given.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
        graph = onnx.helper.make_graph([node], node.op_type, values, outputs)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)])
        return cls.run_model(model, given, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether JAX has a device of this kind: `CPU`, `CUDA` or `TPU`."""
        kind = {"CUDA": "gpu", "GPU": "gpu"}.get(device.partition(":")[0], device.partition(":")[0].lower())
        try:
            return bool(jax.devices(kind))
        except RuntimeError:
            return False


def _newest(node: onnx.NodeProto) -> int:
    if not node.domain:
        return onnx.defs.onnx_opset_version()
    known = onnx.defs.has(node.op_type, node.domain)
    return onnx.defs.get_schema(node.op_type, node.domain).since_version if known else 1


def _data_type(array: np.ndarray) -> int:
    return onnx.TensorProto.STRING if array.dtype.kind in "USO" else onnx.helper.np_dtype_to_tensor_dtype(array.dtype)


is_compatible = OnnxeqxBackend.is_compatible
prepare = OnnxeqxBackend.prepare
run_model = OnnxeqxBackend.run_model
run_node = OnnxeqxBackend.run_node
supports_device = OnnxeqxBackend.supports_device
