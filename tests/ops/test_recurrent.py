"""Recurrent operators against ONNX Runtime, and their gradients, export and printing."""

import equinox as eqx
import jax
import jax.export
import numpy as np
import onnx
import onnxruntime
import pytest
from jax.test_util import check_grads
from onnx import helper, numpy_helper

import onnxeqx
from onnxeqx.plugins.manager import host
from onnxeqx.plugins.recurrent import gru, lstm, rnn

TIME, BATCH, INPUTS, HIDDEN = 5, 3, 4, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTION = {"RNN": rnn, "GRU": gru, "LSTM": lstm}


def drawn(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(0.7)


def operands(
    op_type: str, directions: int, *, lengths: bool, initial: bool, peepholes: bool, bias: bool = True
) -> dict:
    gates = GATES[op_type] * HIDDEN
    found = {
        "X": drawn(TIME, BATCH, INPUTS, seed=0),
        "W": drawn(directions, gates, INPUTS, seed=1),
        "R": drawn(directions, gates, HIDDEN, seed=2),
    }
    if bias:
        found["B"] = drawn(directions, 2 * gates, seed=3)
    if lengths:
        found["sequence_lens"] = np.array([5, 2, 4], np.int32)
    if initial:
        found["initial_h"] = drawn(directions, BATCH, HIDDEN, seed=4)
        if op_type == "LSTM":
            found["initial_c"] = drawn(directions, BATCH, HIDDEN, seed=5)
    if peepholes:
        found["P"] = drawn(directions, 3 * HIDDEN, seed=6)
    return found


def model_of(op_type: str, given: dict, opset: int, weights: bool = False, **attributes) -> onnx.ModelProto:
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"][: 8 if op_type == "LSTM" else 6]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op_type == "LSTM" else 2]
    node = helper.make_node(
        op_type, [name if name in given else "" for name in names], outputs, hidden_size=HIDDEN, **attributes
    )
    stored = [name for name in given if weights and name in "WRBP"]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
        if name not in stored
    ]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info(name, 1, None) for name in outputs])
    graph.initializer.extend(numpy_helper.from_array(given[name], name) for name in stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def check(op_type: str, given: dict, opset: int = 14, **attributes) -> None:
    model = model_of(op_type, given, opset, **attributes)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, given)
    function = host().registry.lookup("", op_type, opset).function
    with jax.numpy_dtype_promotion("strict"):
        results = jax.jit(lambda given: function(**given, n_outputs=len(expected), **attributes))(given)
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("initial", [False, True])
def test_directions_lengths_and_initial_states(op_type, direction, lengths, initial):
    given = operands(op_type, 1 + (direction == "bidirectional"), lengths=lengths, initial=initial, peepholes=False)
    check(op_type, given, direction=direction)


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("opset", [7, 13])
def test_older_versions(op_type, opset):
    check(op_type, operands(op_type, 1, lengths=True, initial=True, peepholes=False), opset)


@pytest.mark.parametrize("op_type", GATES)
def test_the_oldest_versions_take_the_attribute_that_names_their_output(op_type):
    given = operands(op_type, 1, lengths=False, initial=False, peepholes=False)
    entry = host().registry.lookup("", op_type, 1)
    np.testing.assert_array_equal(entry.function(**given, output_sequence=1), FUNCTION[op_type](**given))


@pytest.mark.parametrize(
    ("op_type", "attributes"), [("GRU", {"linear_before_reset": 1}), ("LSTM", {"input_forget": 1})]
)
def test_variants(op_type, attributes):
    check(op_type, operands(op_type, 1, lengths=False, initial=True, peepholes=False), **attributes)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_peepholes(direction):
    given = operands("LSTM", 1 + (direction == "bidirectional"), lengths=False, initial=True, peepholes=True)
    check("LSTM", given, direction=direction)


@pytest.mark.parametrize("op_type", GATES)
def test_clipping_and_no_bias(op_type):
    check(op_type, operands(op_type, 1, lengths=False, initial=True, peepholes=False, bias=False), clip=0.3)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Affine", (0.5, 0.1)),
        ("Elu", (0.7,)),
        ("HardSigmoid", (0.3, 0.4)),
        ("LeakyRelu", (0.2,)),
        ("Relu", ()),
        ("ScaledTanh", (0.8, 1.2)),
        ("Sigmoid", ()),
        ("Softplus", ()),
        ("Softsign", ()),
        ("Tanh", ()),
        ("ThresholdedRelu", (0.2,)),
    ],
)
def test_activations(name, parameters):
    attributes = {"activations": (name,)}
    if parameters:
        attributes["activation_alpha"] = parameters[:1]
    if parameters[1:]:
        attributes["activation_beta"] = parameters[1:]
    check("RNN", operands("RNN", 1, lengths=False, initial=True, peepholes=False), **attributes)


def test_parameters_go_to_the_functions_that_have_some():
    given = operands("LSTM", 2, lengths=False, initial=True, peepholes=False)
    names = ("HardSigmoid", "Tanh", "LeakyRelu", "Sigmoid", "ScaledTanh", "Elu")
    attributes = {"activations": names, "activation_alpha": (0.3, 0.2, 0.9, 0.7), "activation_beta": (0.4, 1.1)}
    check("LSTM", given, direction="bidirectional", **attributes)


@pytest.mark.parametrize("op_type", GATES)
def test_batch_first_layout_is_a_transpose(op_type):
    given = operands(op_type, 2, lengths=True, initial=True, peepholes=False)
    states = {name: np.swapaxes(given[name], 0, 1) for name in ("initial_h", "initial_c") if name in given}
    count = 3 if op_type == "LSTM" else 2
    y, *finals = FUNCTION[op_type](**given, direction="bidirectional", n_outputs=count)
    batch_first = given | states | {"X": np.swapaxes(given["X"], 0, 1)}
    y_1, *finals_1 = FUNCTION[op_type](**batch_first, direction="bidirectional", layout=1, n_outputs=count)
    np.testing.assert_allclose(np.transpose(y, (2, 0, 1, 3)), y_1, rtol=1e-5, atol=1e-6)
    for final, final_1 in zip(finals, finals_1, strict=True):
        np.testing.assert_allclose(np.swapaxes(final, 0, 1), final_1, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op_type", GATES)
def test_gradients(op_type):
    given = operands(op_type, 1, lengths=True, initial=True, peepholes=op_type == "LSTM")
    lengths = given.pop("sequence_lens")
    with jax.enable_x64(True):
        wide = {name: array.astype(np.float64) for name, array in given.items()}
        function = FUNCTION[op_type]
        check_grads(lambda given: function(**given, sequence_lens=lengths, n_outputs=2), (wide,), 1, rtol=1e-4)


@pytest.mark.parametrize("op_type", GATES)
def test_lowers_for_tpu_with_a_symbolic_batch(op_type):
    given = operands(op_type, 1, lengths=False, initial=False, peepholes=False)
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((TIME, batch, INPUTS), np.float32)
    weights = {name: array for name, array in given.items() if name != "X"}
    exported = jax.export.export(jax.jit(lambda x: FUNCTION[op_type](x, **weights)), platforms=["tpu"])(shape)
    assert exported.out_avals[0].shape == (TIME, 1, batch, HIDDEN)


@pytest.mark.parametrize("op_type", GATES)
def test_weights_in_a_model_train(op_type):
    given = operands(op_type, 1, lengths=False, initial=False, peepholes=False)
    model = onnxeqx.load_model(model_of(op_type, given, 17, weights=True))
    gradient = eqx.filter_grad(lambda model: (model(given["X"])[0] ** 2).sum())(model)
    leaves = jax.tree.leaves(eqx.filter(gradient, onnxeqx.parameters(model)))
    assert len(leaves) == 3
    assert all(np.abs(leaf).max() > 0 for leaf in leaves)


def test_unknown_activations_are_refused():
    given = operands("RNN", 1, lengths=False, initial=False, peepholes=False)
    with pytest.raises(ValueError, match="no activation 'Cosine'"):
        rnn(**given, activations=("Cosine",))
    with pytest.raises(ValueError, match="1 activations were given, but 2"):
        gru(**given, activations=("Tanh",))
