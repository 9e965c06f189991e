"""What calls print as: each idiom stands in the source, and computes exactly what the operator's function computes."""

import dataclasses
import functools

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx
import pytest

import onnxeqx
from onnxeqx._convert import convert
from onnxeqx._load import build
from onnxeqx._printing import parsed, unknown_names
from onnxeqx._read import read_proto
from onnxeqx.plugins.manager import PluginHost, host

TYPES = {"float": np.float32, "double": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
FLOATS = ("float", "bfloat16")
ALL_FLOATS = tuple(TYPES)
INTEGERS = ("int32", "int64")


@functools.cache
def functions_only() -> PluginHost:
    """The built-in plugins, with operators that print as calls of their functions."""
    plugins = PluginHost(autoload=False)
    for entries in plugins.registry._ops.values():
        entries[:] = [dataclasses.replace(entry, prints=None, passes_through=False) for entry in entries]
    return plugins


@dataclasses.dataclass(frozen=True)
class Case:
    """`idiom`: what the node prints as. `node`: its text, of inputs `x` (n, 3, 4), `z` (n, 3, 4), `i` (2) and `m` (n, 3, 4).

    `TYPE` in it is ONNX's number of the dtype of `x` and `z`.
    """

    idiom: str
    node: str
    opset: int = 21
    types: tuple[str, ...] = ("float",)

    def model(self, kind: str) -> onnx.ModelProto:
        node = self.node.replace("TYPE", str(onnx.TensorProto.DataType.Value(kind.upper())))
        inputs = f"{kind}[n, 3, 4] x, {kind}[n, 3, 4] z, int64[2] i, bool[n, 3, 4] m"
        return onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["": {self.opset}]> g ({inputs}) => ({kind} y) {{ {node} }}'
        )


def constant(name: str, values: str, kind: str = "int64") -> str:
    size = f"[{values.count(',') + 1}]"
    return f"{name} = Constant<value = {kind}{size} {{{values}}}>()"


def scalar(name: str, value: str, kind: str) -> str:
    return f"{name} = Constant<value = {kind} {{{value}}}>()"


SHAPE = "s = Shape(x) c0 = Constant<value_ints = [0]>() c1 = Constant<value_ints = [1]>() n = Gather(s, c0)"
TOP = "9223372036854775807"

CASES = [
    Case("x.reshape(-1, 4)", f"{constant('t', '-1, 4')} y = Reshape(x, t)"),
    Case("x.reshape(x.shape[0], 12)", f"{constant('t', '0, 12')} y = Reshape(x, t)"),
    Case("x.reshape(*x.shape[:2], 2, -1)", f"{constant('t', '0, 0, 2, -1')} y = Reshape(x, t)"),
    Case("x.reshape(x.shape[0], -1, 2)", f"{SHAPE} {constant('r', '-1, 2')} t = Concat<axis = 0>(n, r) y = Reshape(x, t)"),
    Case("jax.lax.collapse(x, 1)", "y = Flatten(x)"),
    Case("x.reshape(1, -1)", "y = Flatten<axis = 0>(x)"),
    Case("x.reshape(-1, 1)", "y = Flatten<axis = 3>(x)"),
    Case("x.transpose(0, 2, 1)", "y = Transpose<perm = [0, 2, 1]>(x)"),
    Case("x.T", "y = Transpose(x)"),
    Case("x[:, None]", f"{constant('a', '1')} y = Unsqueeze(x, a)"),
    Case("x[..., None]", f"{constant('a', '-1')} y = Unsqueeze(x, a)"),
    Case("x[None, :, None]", f"{constant('a', '0, 2')} y = Unsqueeze(x, a)"),
    Case("x[None]", "y = Unsqueeze<axes = [0]>(x)", 11),
    Case("jnp.squeeze(x[None], axis=0)", f"{constant('a', '0')} u = Unsqueeze(x, a) y = Squeeze(u, a)"),
    Case("x[:, 1:]", f"{constant('a', '1')} {constant('b', '1')} {constant('e', TOP)} y = Slice(x, b, e, a)"),
    Case("x[..., :-1]", f"{constant('b', '0')} {constant('e', '-1')} {constant('a', '2')} y = Slice(x, b, e, a)"),
    Case("x[..., -3:100:2]",
         f"{constant('b', '-3')} {constant('e', '100')} {constant('a', '-1')} {constant('d', '2')} y = Slice(x, b, e, a, d)"),
    Case("x[..., ::-1]",
         f"{constant('b', '-1')} {constant('e', '-' + TOP)} {constant('a', '2')} {constant('d', '-1')} y = Slice(x, b, e, a, d)"),
    Case("x[:, 5:9]", "y = Slice<axes = [1], starts = [5], ends = [9]>(x)", 9, ("float",)),
    Case("x[: x.shape[0] // 2]",
         f"{SHAPE} {constant('two', '2')} h = Div(n, two) {constant('b', '0')} {constant('a', '0')} y = Slice(x, b, h, a)"),
    Case("x[:, 0]", f"{scalar('k', '0', 'int64')} y = Gather<axis = 1>(x, k)"),
    Case("x[..., -1]", f"{scalar('k', '-1', 'int64')} y = Gather<axis = -1>(x, k)"),
    Case("x[:, i]", "y = Gather<axis = 1>(x, i)"),
    Case("x[:, np.array((2, 0, -1))]", f"{constant('k', '2, 0, -1')} y = Gather<axis = 1>(x, k)"),
    Case("jnp.concatenate([x, z], axis=-1)", "y = Concat<axis = -1>(x, z)"),
    Case("jnp.concatenate([x, z])", "y = Concat<axis = 0>(x, z)"),
    Case("jnp.split(x, 2, axis=2)", "y, w = Split<axis = 2, num_outputs = 2>(x)"),
    Case("jnp.split(x, (1,), axis=1)", f"{constant('t', '1, 2')} y, w = Split<axis = 1>(x, t)"),
    Case("tensor.split(", "y, w = Split<axis = 1, num_outputs = 2>(x)"),
    Case("jnp.broadcast_to(x, (5, x.shape[0], 3, 4))", f"{constant('t', '5, 1, 3, 1')} y = Expand(x, t)"),
    Case("jnp.tile(x, (1, 2, 3))", f"{constant('t', '1, 2, 3')} y = Tile(x, t)"),
    Case("jnp.triu(x)", "y = Trilu(x)"),
    Case("jnp.tril(x, k=-1)", f"{scalar('k', '-1', 'int64')} y = Trilu<upper = 0>(x, k)"),
    Case("jnp.where(m, x, z)", "y = Where(m, x, z)", types=FLOATS),
    Case("x**2", "t = Constant<value_float = 2.0>() e = Cast<to = TYPE>(t) y = Pow(x, e)", types=ALL_FLOATS),
    Case("x ** (-1)", "t = Constant<value_float = -1.0>() e = Cast<to = TYPE>(t) y = Pow(x, e)", types=ALL_FLOATS),
    Case("x**0.5", "t = Constant<value_float = 0.5>() e = Cast<to = TYPE>(t) y = Pow(x, e)", types=FLOATS),
    Case("x**z", "y = Pow(x, z)", types=ALL_FLOATS),
    Case("1 / x", "y = Reciprocal(x)", types=FLOATS),
    Case("jnp.abs(x)", "y = Abs(x)", types=(*FLOATS, "int64")),
    Case("jnp.round(x)", "y = Round(x)", types=FLOATS),
    Case("jnp.minimum(x, z)", "y = Min(x, z)", types=(*FLOATS, "int32")),
    Case("jnp.maximum(jnp.maximum(x, z), x)", "y = Max(x, z, x)", types=(*FLOATS, "int64")),
    Case("x + z + x", "y = Sum(x, z, x)", types=FLOATS),
    Case("(x + z) / 2", "y = Mean(x, z)", types=FLOATS),
    Case("jax.nn.relu6(x)", "a = Constant<value_float = 0.0>() b = Constant<value_float = 6.0>() y = Clip(x, a, b)", types=("float",)),
    Case("jnp.clip(x, -1.0, 0.5)", "a = Constant<value_float = -1.0>() b = Constant<value_float = 0.5>() y = Clip(x, a, b)",
         types=("float",)),
    Case("jnp.minimum(x, 1.5)", "b = Constant<value_float = 1.5>() y = Clip(x, , b)", types=("float",)),
    Case("jnp.clip(x, -0.5, 0.5)", "y = Clip<min = -0.5, max = 0.5>(x)", 10, ("float", "double", "float16")),
    Case("elementwise.clip_6(", "y = Clip<min = -0.5>(x)", 10, ("float",)),
    Case("jnp.mean(x, axis=-1, keepdims=True)", f"{constant('a', '-1')} y = ReduceMean(x, a)", types=ALL_FLOATS),
    Case("jnp.mean(x, axis=(1, 2))", "y = ReduceMean<axes = [1, 2], keepdims = 0>(x)", 13),
    Case("reduction.reduce_mean(", f"{constant('a', '1')} y = ReduceMean(x, a)", types=INTEGERS),
    Case("jnp.sum(x, axis=1)", f"{constant('a', '1')} y = ReduceSum<keepdims = 0>(x, a)", types=(*FLOATS, "int64")),
    Case("jnp.sum(x)", "y = ReduceSum<keepdims = 0>(x)", types=ALL_FLOATS),
    Case("reduction.reduce_sum(", f"{constant('a', '1')} y = ReduceSum(x, a)", types=("int32",)),
    Case("jnp.max(x, axis=1, keepdims=True)", f"{constant('a', '1')} y = ReduceMax(x, a)", types=(*FLOATS, *INTEGERS)),
    Case("reduction.reduce_min(", f"{constant('a', '0')} y = ReduceMin(x, a)", types=FLOATS),
    Case("jnp.prod(x, axis=2)", f"{constant('a', '2')} y = ReduceProd<keepdims = 0>(x, a)", types=ALL_FLOATS),
    Case("jnp.cumsum(x, axis=1)", f"{scalar('a', '1', 'int64')} y = CumSum(x, a)", types=(*ALL_FLOATS, "int64")),
    Case("jnp.argmax(x, axis=1)", "k = ArgMax<axis = 1, keepdims = 0>(x) y = CastLike(k, x)"),
    Case("jnp.argmin(x, axis=-1, keepdims=True)", "k = ArgMin<axis = -1>(x) y = CastLike(k, x)"),
    Case("jax.nn.softmax(x)", "y = Softmax(x)", types=ALL_FLOATS),
    Case("jax.nn.softmax(x, axis=1)", "y = Softmax<axis = 1>(x)"),
    Case("jax.nn.softmax(x, axis=(1, 2))", "y = Softmax(x)", 11, ("float",)),
    Case("jax.nn.log_softmax(x)", "y = LogSoftmax(x)", types=FLOATS),
    Case("jax.nn.leaky_relu(x)", "y = LeakyRelu(x)", types=FLOATS),
    Case("jax.nn.leaky_relu(x, negative_slope=0.20000000298023224)", "y = LeakyRelu<alpha = 0.2>(x)", types=("float",)),
    Case("jax.nn.elu(x)", "y = Elu(x)"),
    Case("jax.nn.elu(x, alpha=1.6732631921768188)", "y = Selu(x)", types=("float",)),
    Case("jax.nn.celu(x)", "y = Celu(x)", types=("float",)),
    Case("jax.nn.mish(x)", "y = Mish(x)", types=("float", "double", "float16")),
    Case("jax.nn.gelu(x)", 'y = Gelu<approximate = "tanh">(x)', types=FLOATS),
    Case("jax.nn.gelu(x, approximate=False)", "y = Gelu(x)", types=FLOATS),
    Case("jnp.where(x > 1.0, x, 0)", "y = ThresholdedRelu(x)", types=FLOATS),
    Case("jnp.where(x >= 0, x, z * x)", "y = PRelu(x, z)", types=FLOATS),
    Case("jnp.clip(0.2 * x + 0.5, 0, 1)", "y = HardSigmoid(x)", types=FLOATS),
    Case("jnp.pad(x, ((0, 0), (1, 2), (0, 0)))", f"{constant('p', '0, 1, 0, 0, 2, 0')} y = Pad(x, p)"),
    Case('jnp.pad(x, ((0, 0), (1, 1), (0, 0)), mode="reflect")',
         f"{constant('p', '1, 1')} {constant('a', '1')} y = Pad<mode = \"reflect\">(x, p, , a)"),
    Case("padding.pad(", f"{constant('p', '0, -1, 0, 0, 2, 0')} y = Pad(x, p)"),
    Case('jnp.einsum("bij,bkj->bik", x, z)', 'y = Einsum<equation = "bij,bkj->bik">(x, z)'),
    Case(".astype(dtype)", "k = Cast<to = 6>(x) y = Cast<to = 1>(k)", types=("float",)),
    Case("x.astype(jnp.int32)", "k = Cast<to = 6>(x) y = CastLike(k, x)", types=FLOATS),
    Case("x.astype(int)", "k = Cast<to = 7>(x) y = CastLike(k, x)", types=FLOATS),
    Case("x.astype(bool)", "k = Cast<to = 9>(x) y = CastLike(k, x)", types=FLOATS),
    Case(".astype(x.dtype)", "y = CastLike(m, x)", types=ALL_FLOATS),
    Case("casting.cast(", "k = Cast<to = 17>(x) y = CastLike(k, x)", types=("float", "float16")),
    Case("~m", "k = Not(m) y = CastLike(k, x)"),
    Case("x % z", "y = Mod(x, z)", types=INTEGERS),
    Case("jnp.fmod(x, z)", "y = Mod<fmod = 1>(x, z)", types=FLOATS),
    Case("jnp.isinf(x)", "k = IsInf(x) y = CastLike(k, x)", types=("float", "double")),
    Case("jnp.mean(x, axis=2, keepdims=True)", "y = GlobalAveragePool(x)", types=FLOATS),
    Case("jnp.max(x, axis=2, keepdims=True)", "y = GlobalMaxPool(x)"),
    Case("jnp.arange(x.shape[0])", f"{SHAPE} o = Constant<value_int = 1>() z0 = Constant<value_int = 0>() "
         "b = Squeeze(n, c0) k = Range(z0, b, o) u = Unsqueeze(k, c1) w = Unsqueeze(u, c1) y = CastLike(w, x)"),
    Case("jnp.zeros((x.shape[0], 3, 1), int)", f"{SHAPE} {constant('r', '3, 1')} t = Concat<axis = 0>(n, r) "
         "k = ConstantOfShape<value = int64[1] {0}>(t) c = CastLike(k, x) y = Add(c, x)"),
    Case("jnp.full((x.shape[0], 3, 1), 7, int)", f"{SHAPE} {constant('r', '3, 1')} t = Concat<axis = 0>(n, r) "
         "k = ConstantOfShape<value = int64[1] {7}>(t) c = CastLike(k, x) y = Add(c, x)"),
    Case("jnp.take_along_axis(x, jnp.argmax(x, axis=1, keepdims=True), axis=1)",
         "k = ArgMax<axis = 1>(x) y = GatherElements<axis = 1>(x, k)"),
]  # fmt: skip
PAIRS = [(case, kind) for case in CASES for kind in case.types]
X64 = ("double",)


def inputs(kind: str, n: int = 2) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(0)
    x, z = (generator.standard_normal((n, 3, 4)) * 3 for _ in range(2))
    x.reshape(-1)[:5] = 0, -0.0, 1, 2.5, -1  # ties, halves and zeros
    z.reshape(-1)[:4] = 0.5, 1, 1, 2
    z = np.where(np.abs(z) < 0.5, 1, z)
    dtype = TYPES.get(kind, kind)
    return x.astype(dtype), z.astype(dtype), np.array([2, -1]), x > 0.5


def both(case: Case, kind: str):
    """The model with idioms, and with functions."""
    model = case.model(kind)
    idioms = convert(read_proto(model), "model")
    assert case.idiom in idioms.source, idioms.source[idioms.source.index("    def ") :]
    return build(idioms), build(convert(read_proto(model), "model", functions_only()))


def assert_identical(got, wanted) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    got, wanted = (np.asarray(array).astype(np.float64) for array in (got, wanted))  # where all NaN are equal
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(wanted[~np.isnan(wanted)]))


def ids(item) -> str:
    return f"{item.node.split('y = ')[-1]}-{item.idiom}" if isinstance(item, Case) else item


@pytest.mark.parametrize(("case", "kind"), PAIRS, ids=ids)
def test_an_idiom_computes_what_the_function_does(case, kind):
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(kind in X64):
        printed, called = both(case, kind)
        arrays = inputs(kind)
        assert_identical(printed(*arrays), called(*arrays))
        results = jax.jit(lambda *arrays: [(model(*arrays), _gradient(model, *arrays)) for model in (printed, called)])
        for got, wanted in zip(*results(*map(jnp.asarray, arrays)), strict=True):
            assert_identical(got, wanted)


def _gradient(model, x, *others):
    """The gradient of a sum of squares, or zeros for integers."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return jax.grad(lambda x: jnp.sum(model(x, *others).astype(x.dtype) ** 2))(x)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_an_idiom_holds_for_a_symbolic_batch(case):
    (n,) = jax.export.symbolic_shape("n")
    arrays = [jnp.asarray(array) for array in inputs(case.types[0], 6)]
    structs = [
        jax.ShapeDtypeStruct((n, *array.shape[1:]) if array.ndim == 3 else array.shape, array.dtype) for array in arrays
    ]
    with jax.numpy_dtype_promotion("strict"):
        models = both(case, case.types[0])
        exported = jax.export.export(jax.jit(lambda *arrays: [model(*arrays) for model in models]))(*structs)
        assert_identical(*exported.call(*arrays))


def test_all_printing_rules_are_expressions_of_the_operators_own_parameters():
    texts = [(entry, entry.prints) for entry in host().registry.ops() if isinstance(entry.prints, str)]
    assert len(texts) > 50
    for entry, text in texts:
        parsed(text)
        assert not unknown_names(text, {*entry.inputs, *entry.attributes}), text


def test_an_expression_that_names_something_else_is_refused():
    with pytest.raises(onnxeqx.PluginError, match="'beta'"):
        onnxeqx.op("Scaled", domain="org.acme", prints="jnp.tanh(beta * x)")(lambda x, *, alpha=1.0: x)
