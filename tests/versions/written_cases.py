"""Cases for versions of operators that no suite of the ONNX project covers.

The expectation is ONNX Runtime's wherever it has a kernel: for the version itself, or for a later one that means the same
by the operator's changelog. Elsewhere it is written in NumPy from the text of that version.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import TensorProto, helper

from onnxeqx.conformance import Case

ML = "ai.onnx.ml"
_GENERATOR = np.random.default_rng(0)
X = _GENERATOR.standard_normal((2, 3, 4)).astype(np.float32)
Y = _GENERATOR.standard_normal((2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(X) + 0.5
ROW = _GENERATOR.standard_normal(3).astype(np.float32)
IMAGE = _GENERATOR.standard_normal((2, 4, 6, 5)).astype(np.float32)
TABLE = _GENERATOR.standard_normal((6, 4)).astype(np.float32)
BITS, OTHER_BITS = X > 0, Y > 0
TEXT = np.array([["a", "b"], ["c", "a"]], object)


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
    """One node, its operands and what it gives.

    **Fields:** `op`, `version`, `domain`; `inputs` (`None` where one is left out); `attributes`; `expected`: arrays, or the
    version whose kernel of ONNX Runtime is asked; `outputs`: how many the node has.
    """

    op: str
    version: int
    inputs: tuple[Any, ...]
    attributes: dict[str, Any]
    expected: Any
    outputs: int = 1
    domain: str = ""

    @property
    def name(self) -> str:
        return f"{self.domain}::{self.op}-{self.version}".removeprefix("::")

    def case(self) -> Case:
        return Case(self.name, "written", self._load, rtol=1e-5, atol=1e-6)

    def _load(self) -> tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]:
        given = [value if isinstance(value, dict) else np.asarray(value) for value in self.inputs if value is not None]
        by_runtime = isinstance(self.expected, int)
        expected = run(model_of(self, self.expected), given) if by_runtime else list(self.expected)
        return model_of(self, self.version), [(given, expected)]


def model_of(case: Written, version: int) -> onnx.ModelProto:
    """A model of this one node, at this version of its domain."""
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(case.inputs)]
    declared = [
        helper.make_value_info(name, _type(value)) for name, value in zip(names, case.inputs, strict=True) if name
    ]
    results = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, results, domain=case.domain, **case.attributes)
    graph = helper.make_graph([node], "g", declared, [onnx.ValueInfoProto(name=name) for name in results])
    opsets = [helper.make_opsetid(case.domain, version)] + ([helper.make_opsetid("", 17)] if case.domain else [])
    known = [entry for entry in opsets if entry.version >= 7 or entry.domain]  # onnx has no table of IR versions before
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(known) if known else 3
    )


def _type(value: Any) -> onnx.TypeProto:
    if isinstance(value, dict):
        key, item = next(iter(value.items()))
        return helper.make_map_type_proto(
            TensorProto.INT64 if isinstance(key, int) else TensorProto.STRING, _type(item)
        )
    array = np.asarray(value)
    text = array.dtype.kind in "OU"
    return helper.make_tensor_type_proto(
        TensorProto.STRING if text else helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
    )


def run(model: onnx.ModelProto, inputs: list[np.ndarray]) -> list[Any]:
    """What ONNX Runtime says, with optimisations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {value.name: x for value, x in zip(session.get_inputs(), inputs, strict=True)})


def by_numpy(op: str, version: int, *inputs: Any, gives: Any, **attributes: Any) -> Written:
    """With an expectation of one or several arrays."""
    expected = gives if isinstance(gives, list) else [gives]
    return Written(op, version, inputs, attributes, expected, len(expected))


def by_runtime(
    op: str,
    version: int,
    *inputs: Any,
    kernel: int | None = None,
    outputs: int = 1,
    domain: str = "",
    **attributes: Any,
) -> Written:
    """With ONNX Runtime's kernel for this version, or for a later one (`kernel`) that means the same."""
    return Written(op, version, inputs, attributes, kernel or version, outputs, domain)


def _elementwise() -> list[Written]:
    sigmoid = 1 / (1 + np.exp(-X))
    unary = {
        "Abs": np.abs(X),
        "Ceil": np.ceil(X),
        "Elu": np.where(X > 0, X, np.expm1(X)),
        "Exp": np.exp(X),
        "Floor": np.floor(X),
        "HardSigmoid": np.clip(0.2 * X + 0.5, 0, 1),
        "LeakyRelu": np.where(X > 0, X, np.float32(0.01) * X),
        "Neg": -X,
        "Relu": np.maximum(X, 0),
        "Selu": np.where(X > 0, np.float32(1.0507) * X, np.float32(1.0507 * 1.6732) * np.expm1(X)),
        "Sigmoid": sigmoid,
        "Tanh": np.tanh(X),
    }
    cases = [by_numpy(op, 1, X, gives=wanted, consumed_inputs=[0]) for op, wanted in unary.items()]
    positive = {"Log": np.log(POSITIVE), "Reciprocal": 1 / POSITIVE, "Sqrt": np.sqrt(POSITIVE)}
    cases += [by_numpy(op, 1, POSITIVE, gives=wanted, consumed_inputs=[0]) for op, wanted in positive.items()]
    # Before 7, the second operand's shape lies within the first's from `axis` on.
    row = ROW[:, None]
    arithmetic = {"Add": X + row, "Sub": X - row, "Mul": X * row, "Div": X / row}
    cases += [by_numpy(op, 1, X, ROW, gives=wanted, axis=1, broadcast=1) for op, wanted in arithmetic.items()]
    bits = BITS[0, :, 0]
    logical = {"And": BITS & bits[:, None], "Or": BITS | bits[:, None], "Xor": BITS ^ bits[:, None]}
    cases += [by_numpy(op, 1, BITS, bits, gives=wanted, axis=1, broadcast=1) for op, wanted in logical.items()]
    order = {"Greater": np.greater(X, row), "Less": np.less(X, row)}
    cases += [by_numpy(op, 1, X, ROW, gives=wanted, axis=1, broadcast=1) for op, wanted in order.items()]
    cases += [by_runtime(op, 7, X, Y) for op in ("Greater", "Less")]
    whole = np.arange(24).reshape(2, 3, 4)
    cases.append(by_numpy("Equal", 1, whole, whole[0, :, 0], gives=whole == whole[0, :, :1], axis=1, broadcast=1))
    variadic = {"Max": np.maximum(X, Y), "Min": np.minimum(X, Y), "Mean": (X + Y) / 2, "Sum": X + Y}
    cases += [by_numpy(op, 1, X, Y, gives=wanted, consumed_inputs=[0, 0]) for op, wanted in variadic.items()]
    return [
        *cases,
        by_runtime("Mean", 6, X, Y),
        by_numpy("Clip", 1, X, gives=np.clip(X, -0.5, 0.5), min=-0.5, max=0.5, consumed_inputs=[0]),
        by_numpy("PRelu", 1, X, ROW, gives=np.where(X < 0, X * row, X), consumed_inputs=[0, 0]),
        by_runtime("PRelu", 7, X, row),
        by_runtime("Relu", 13, X),
        by_numpy("Cast", 1, 10 * X, gives=(10 * X).astype(np.int32), to="INT32"),
        by_runtime("Cast", 6, 10 * X, to=TensorProto.INT32),
        by_numpy("Dropout", 1, X, gives=X, is_test=1, ratio=0.7, consumed_inputs=[0]),
        by_numpy("Dropout", 6, X, gives=X, is_test=1, ratio=0.7),
    ]


def _layout() -> list[Written]:
    blocks = IMAGE.reshape(2, 2, 2, 1, 6, 5).transpose(0, 3, 4, 1, 5, 2).reshape(2, 1, 12, 10)
    even = IMAGE[:, :, :, :4]
    depth = even.reshape(2, 4, 3, 2, 2, 2).transpose(0, 3, 5, 1, 2, 4).reshape(2, 16, 3, 2)
    padded = np.pad(X, ((0, 0), (1, 0), (0, 2)), constant_values=1.5)
    columns = -np.sort(-X, axis=1)[:, :2]
    positions = np.argsort(-X, axis=1, kind="stable")[:, :2]
    return [
        by_numpy("Concat", 1, X, Y, gives=np.concatenate([X, Y], 1)),
        by_numpy("DepthToSpace", 1, IMAGE, gives=blocks, blocksize=2),
        by_numpy("SpaceToDepth", 1, even, gives=depth, blocksize=2),
        by_numpy("Flatten", 24, X, gives=X.reshape(6, 4), axis=2),
        by_numpy("Optional", 28, X, gives=X),
        by_numpy("Size", 24, X, gives=np.array(24)),
        by_numpy("Pad", 1, X, gives=padded, paddings=[0, 1, 0, 0, 0, 2], value=1.5),
        by_runtime("Pad", 13, X, np.array([0, 1, 0, 0, 0, 2]), np.array(1.5, np.float32)),
        by_numpy("Reshape", 1, X, gives=X.reshape(2, 12), shape=[0, -1], consumed_inputs=[0]),
        by_numpy("Split", 1, X, gives=[X[:, :, :1], X[:, :, 1:]], axis=2, split=[1, 3]),
        by_runtime("Split", 11, X, outputs=2, axis=-1, split=[1, 3]),
        by_numpy("Tile", 1, X, np.array(2.0, np.float32), np.array(1.0, np.float32), gives=np.tile(X, (1, 2, 1))),
        by_numpy("TopK", 1, X, gives=[columns, positions], axis=1, k=2),
        by_runtime("TopK", 10, X, np.array([2]), outputs=2, axis=1),
        by_runtime("OneHot", 9, np.array([[0, 2], [1, -1]]), np.array([3]), np.array([0.5, 2.0], np.float32), axis=1),
        *(
            by_runtime(op, version, X, np.array([[[1, 0, 2, 0]]]), Y[:1, :1], kernel=kernel, axis=1)
            for op, version, kernel in (("Scatter", 11, 10), ("ScatterElements", 13, 13), ("ScatterElements", 16, 16))
        ),
        *(by_runtime("ScatterND", version, X, np.array([[1, 2], [0, 1]]), Y[0, :2]) for version in (13, 16)),
    ]


def _reductions() -> list[Written]:
    cases = [
        by_runtime(op, 13, POSITIVE, axes=[-1, 0], keepdims=0)
        for op in (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMin",
            "ReduceProd",
            "ReduceSumSquare",
        )
    ]
    whole = np.arange(-12, 12, dtype=np.int8).reshape(2, 3, 4)
    return cases + [by_runtime(op, 12, whole, axes=[1]) for op in ("ReduceMax", "ReduceMin")]


def _linear_algebra_and_normalization() -> list[Written]:
    a, b = X[0], Y[0].T.copy()
    channels = [POSITIVE[0, 0, :4], Y[0, 0], IMAGE.mean((0, 2, 3)), IMAGE.var((0, 2, 3))]
    scale, bias, mean, variance = (np.asarray(value, np.float32) for value in channels)
    over = (slice(None), None, None)
    normalized = (IMAGE - mean[over]) / np.sqrt(variance[over] + np.float32(1e-5)) * scale[over] + bias[over]
    own_mean, own_variance = IMAGE.mean((2, 3), keepdims=True), IMAGE.var((2, 3), keepdims=True)
    instance = (IMAGE - own_mean) / np.sqrt(own_variance + np.float32(1e-5)) * scale[over] + bias[over]
    parameters = (scale, bias, mean, variance)
    labels, weights = np.array([2, 0, 1, 3, 1, 0]), np.array([0.5, 1.0, 2.0, 1.5], np.float32)
    return [
        by_numpy("Gemm", 1, a, b, ROW, gives=2 * a @ b + 0.5 * ROW, alpha=2.0, beta=0.5, broadcast=1),
        by_runtime("Gemm", 7, a, b, ROW, alpha=2.0, beta=0.5),
        by_numpy(
            "BatchNormalization", 1, IMAGE, *parameters, gives=normalized, is_test=1, consumed_inputs=[0, 0, 0, 1, 1]
        ),
        by_runtime("BatchNormalization", 7, IMAGE, *parameters, epsilon=1e-3),
        by_numpy("InstanceNormalization", 1, IMAGE, scale, bias, gives=instance, consumed_inputs=[0, 0, 0]),
        by_runtime("LpNormalization", 1, X, axis=1, p=1),
        by_runtime("NegativeLogLikelihoodLoss", 12, TABLE, labels, weights, reduction="mean"),
        by_runtime("SoftmaxCrossEntropyLoss", 12, TABLE, labels, weights, outputs=2, reduction="sum"),
    ]


def _pooling_and_resizing() -> list[Written]:
    norms = np.cbrt((np.abs(IMAGE) ** 3).sum((2, 3), keepdims=True))
    windows = np.lib.stride_tricks.sliding_window_view(IMAGE, (2, 2), (2, 3))[:, :, ::2, ::2]
    squares = np.sqrt((windows**2).sum((-2, -1)))
    window = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
    regions = np.array([[0, 0, 0, 3, 4], [1, 1, 2, 4, 5]], np.float32)
    doubled = IMAGE.repeat(2, 2).repeat(3, 3)
    scales = np.array([1, 1, 2, 3], np.float32)
    return [
        by_runtime("AveragePool", 11, IMAGE, **window, count_include_pad=1),
        by_runtime("MaxPool", 11, IMAGE, outputs=2, **window, dilations=[1, 2], ceil_mode=1),
        by_numpy("GlobalLpPool", 1, IMAGE, gives=norms, p=3.0),
        *(by_numpy("GlobalLpPool", version, IMAGE, gives=norms, p=3) for version in (2, 22)),
        by_numpy("LpPool", 1, IMAGE, gives=squares, kernel_shape=[2, 2], strides=[2, 2], p=2.0),
        by_runtime("LpPool", 2, IMAGE, **window, p=3),
        by_runtime("LpPool", 11, IMAGE, **window, p=1),
        by_runtime("MaxRoiPool", 1, IMAGE, regions, pooled_shape=[2, 2], spatial_scale=0.5),
        by_runtime("MaxRoiPool", 22, IMAGE, regions, kernel=1, pooled_shape=[2, 2], spatial_scale=0.5),
        by_numpy("Upsample", 1, IMAGE, gives=doubled, height_scale=2.0, width_scale=3.0, mode="nearest"),
        by_runtime("Upsample", 7, IMAGE, scales=scales.tolist(), mode="linear"),
        by_runtime("Upsample", 10, IMAGE, scales, kernel=9),
        by_runtime("Resize", 10, IMAGE, scales, mode="linear"),
        by_runtime("Resize", 18, IMAGE, None, None, np.array([4, 9]), axes=[2, 3], mode="cubic"),
    ]


def _recurrent() -> list[Written]:
    """Version 1 differs from 7 in `output_sequence` alone, which allows the first output to be left out."""
    sequence = _GENERATOR.standard_normal((5, 2, 4)).astype(np.float32)

    def weights(gates: int) -> list[np.ndarray]:
        shapes = [(1, gates * 3, 4), (1, gates * 3, 3), (1, gates * 6)]
        return [_GENERATOR.standard_normal(shape).astype(np.float32) for shape in shapes]

    return [
        by_runtime("RNN", 1, sequence, *weights(1), kernel=7, outputs=2, hidden_size=3),
        by_runtime("LSTM", 1, sequence, *weights(4), kernel=7, outputs=3, hidden_size=3),
        by_runtime("GRU", 1, sequence, *weights(3), kernel=7, outputs=2, hidden_size=3),
        by_runtime("GRU", 3, sequence, *weights(3), kernel=7, outputs=2, hidden_size=3, linear_before_reset=1),
    ]


def _quantization_and_random() -> list[Written]:
    scale, zero = np.array([0.1, 0.2, 0.5], np.float32), np.array([10, 20, 30], np.uint8)
    column = (slice(None), None)
    steps = np.clip(np.rint(X / scale[column]) + zero[column], 0, 255).astype(np.uint8)
    certain = np.where(np.arange(4) == np.array([[2], [0]]), 0, -np.inf).astype(np.float32)
    same = np.full((2, 3), 0.5, np.float32)
    return [
        by_numpy("QuantizeLinear", 24, X, scale, zero, gives=steps, axis=1),
        by_numpy(
            "DequantizeLinear",
            24,
            steps,
            scale,
            zero,
            gives=(steps - 1.0 * zero[column]).astype(np.float32) * scale[column],
            axis=1,
        ),
        # What is drawn is not specified; draws that are certain are.
        *(
            by_numpy(
                "Multinomial", version, certain, gives=np.array([[2] * 5, [0] * 5], np.int32), sample_size=5, seed=1.0
            )
            for version in (7, 22)
        ),
        *(by_numpy("RandomNormal", v, gives=same, shape=[2, 3], mean=0.5, scale=0.0) for v in (1, 22)),
        *(by_numpy("RandomNormalLike", v, X, gives=np.full_like(X, 0.5), mean=0.5, scale=0.0) for v in (1, 22)),
        *(by_numpy("RandomUniformLike", v, X, gives=np.full_like(X, 0.5), low=0.5, high=0.5) for v in (1, 22)),
        *(by_numpy("Bernoulli", v, BITS.astype(np.float32), gives=BITS.astype(np.float32), seed=1.0) for v in (15, 22)),
        *(by_numpy("RandomUniform", v, gives=same, shape=[2, 3], low=0.5, high=0.5) for v in (1, 22)),
    ]


def _graph(text: str) -> onnx.GraphProto:
    return onnx.parser.parse_graph(text)


def _control_flow() -> list[Written]:
    larger = _graph("big () => (float[2] y) { y = Constant <value = float[2] {2.0, 3.0}> () }")
    smaller = _graph("small () => (float[2] y) { x = Constant <value = float[2] {4.0, 5.0}> () y = Neg(x) }")
    # Loop 1 and Scan 11 on: a running sum that also gives each of its values.
    step = _graph(
        "step (int64 i, bool go, float[3,4] sum) => (bool on, float[3,4] next, float[3,4] each) "
        "{ on = Identity(go) next = Add(sum, sum) each = Identity(next) }"
    )
    scanned = _graph(
        "step (float[3,4] sum, float[3,4] x) => (float[3,4] next, float[3,4] each) { next = Add(sum, x) each = Identity(next) }"
    )
    trips = (np.array(3), np.array(True), X[0])
    return [
        *(
            by_runtime("If", version, np.array([False]), kernel=kernel, then_branch=larger, else_branch=smaller)
            for version, kernel in ((1, 11), (21, 21), (23, 23), (24, 24), (25, 25))
        ),
        *(
            by_runtime("Loop", version, *trips, kernel=kernel, outputs=2, body=step)
            for version, kernel in ((1, 11), (19, 19), (21, 21), (23, 23), (24, 24))
        ),
        *(
            by_runtime("Scan", version, X[0], Y, outputs=2, body=scanned, num_scan_inputs=1)
            for version in (11, 16, 19, 21, 23, 24)
        ),
    ]


def _machine_learning() -> list[Written]:
    ml = functools.partial(by_runtime, domain=ML)
    weights = TABLE[:3].reshape(-1).tolist()
    vectors = TABLE[:3].reshape(-1).tolist()
    nodes = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [1, 0, 0],
        "nodes_values": [0.1, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
    }
    classes = {"class_treeids": [0, 0], "class_nodeids": [1, 2], "class_ids": [0, 2], "class_weights": [0.25, 0.75]}
    targets = {"target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [0.25, 4.0]}
    supports = {"kernel_type": "RBF", "kernel_params": [0.3, 0.0, 3.0], "support_vectors": vectors}
    machine = {"coefficients": [0.5, -0.25, 0.75], "rho": [0.2]}
    return [
        ml("CastMap", 1, dict.fromkeys((3, 1), np.float32(1.5)), map_form="SPARSE", max_map=4, cast_to="TO_FLOAT"),
        ml("DictVectorizer", 1, {"b": np.float32(2), "a": np.float32(1)}, string_vocabulary=["a", "c", "b"]),
        ml("CategoryMapper", 1, TEXT, cats_int64s=[10, 20], cats_strings=["a", "b"]),
        ml("FeatureVectorizer", 1, TABLE, TABLE[:, :2], inputdimensions=[4, 2]),
        ml("Imputer", 1, np.array([[1, 0], [0, 2]]), imputed_value_int64s=[7], replaced_value_int64=0),
        ml("LabelEncoder", 1, TEXT, classes_strings=["b", "a"]),
        ml("LabelEncoder", 2, TEXT, keys_strings=["a", "b"], values_int64s=[5, 6]),
        ml(
            "LinearClassifier",
            1,
            TABLE,
            outputs=2,
            coefficients=weights,
            intercepts=[0.1, 0.2, 0.3],
            classlabels_ints=[5, 7, 9],
        ),
        ml("LinearRegressor", 1, TABLE, coefficients=weights, intercepts=[0.1, 0.2, 0.3], targets=3),
        ml("Normalizer", 1, TABLE, norm="L2"),
        ml("OneHotEncoder", 1, np.array([[1, 3], [2, 9]]), cats_int64s=[1, 2, 3]),
        ml("Scaler", 1, TABLE, offset=[0.1, 0.2, 0.3, 0.4], scale=[1.0, 2.0, 3.0, 4.0]),
        ml(
            "SVMClassifier",
            1,
            TABLE,
            outputs=2,
            **supports,
            **machine,
            vectors_per_class=[2, 1],
            classlabels_ints=[0, 1],
        ),
        ml("SVMRegressor", 1, TABLE, **supports, **machine, n_supports=3),
        *(
            ml(
                "TreeEnsembleClassifier",
                v,
                TABLE,
                outputs=2,
                kernel=min(v, 3),
                **nodes,
                **classes,
                classlabels_int64s=[4, 5, 6],
            )
            for v in (1, 3, 5)
        ),
        *(
            ml("TreeEnsembleRegressor", version, TABLE, kernel=min(version, 3), n_targets=1, **nodes, **targets)
            for version in (1, 3, 5)
        ),
        ml("ZipMap", 1, TABLE[:, :2], classlabels_strings=["a", "b"]),
    ]


WRITTEN = [
    *_elementwise(),
    *_layout(),
    *_reductions(),
    *_linear_algebra_and_normalization(),
    *_pooling_and_resizing(),
    *_recurrent(),
    *_quantization_and_random(),
    *_control_flow(),
    *_machine_learning(),
]
