"""Arithmetic: the suite on the host, every old version, Python scalars, symbolic dimensions, gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx.parser
import pytest

import onnxeqx
from onnxeqx.plugins import elementwise

from .family_cases import M, N, check, check_against_runtime, check_host_case, host_case_names, lookup, objects, texts

X = np.array([[-2.5, -1, 0, 0.5], [1, 2, 3, 70]], np.float32)
POSITIVE = np.abs(X) + np.float32(0.25)
CUBE = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
UNARY = {
    "Neg": np.negative,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Exp": np.exp,
    "Log": np.log,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Tanh": np.tanh,
}
BINARY = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
HOST_CASES = host_case_names("elementwise")


@pytest.mark.parametrize("name", HOST_CASES)
def test_suite_on_host(name):
    check_host_case(name)


def test_the_suite_has_host_cases():
    assert len(HOST_CASES) >= 100


@pytest.mark.parametrize("name", UNARY)
def test_unary_at_every_opset(name):
    small = POSITIVE[:, :3]
    check(name, 1, [small], UNARY[name](small), consumed_inputs=(0,))
    check_against_runtime(name, 6, small)
    check_against_runtime(name, 13, small)


@pytest.mark.parametrize("name", ["Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Asin", "Acos", "Atanh"])
def test_trigonometry(name):
    since = lookup(name, 22).since
    for opset in (since, 22):
        check_against_runtime(name, opset, np.array([-0.75, 0, 0.5], np.float32))


def test_more_unary():
    check_against_runtime("Acosh", 9, POSITIVE + 1)
    check_against_runtime("Erf", 9, X)
    check_against_runtime("Round", 11, np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32))
    check_against_runtime("Sign", 9, X)
    check_against_runtime("Sign", 13, np.array([-3, 0, 3]))
    special = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    check_against_runtime("IsNaN", 9, special)
    check_against_runtime("IsInf", 10, special)
    check_against_runtime("IsInf", 10, special, detect_negative=0)
    check_against_runtime("IsInf", 10, special, detect_positive=0)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize(
    ("shape", "axis", "seen"),
    [
        ((), None, ()),
        ((1, 1), None, (1, 1)),
        ((4,), None, (4,)),
        ((3, 4), None, (3, 4)),
        ((3,), 1, (3, 1)),
        ((2,), 0, (2, 1, 1)),
        ((2, 3), 0, (2, 3, 1)),
        ((3,), -2, (3, 1)),
        ((), 0, ()),
    ],
)
def test_broadcasting_on_request(name, opset, shape, axis, seen):
    b = np.full(shape, 2, np.float32) + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    attributes = {"broadcast": 1} | ({} if axis is None else {"axis": axis})
    check(name, opset, [CUBE, b], BINARY[name](CUBE, b.reshape(seen)), **attributes)


@pytest.mark.parametrize("name", [*BINARY, "Pow"])
def test_binary_at_newer_opsets(name):
    x = POSITIVE[:, :3]
    check(name, 6, [x, x], (BINARY | {"Pow": np.power})[name](x, x))
    for opset in (7, 13, 15):
        check_against_runtime(name, opset, x, x[0])


def test_old_power_is_broadcast_on_request():
    exponents = np.array([1, 2, 3], np.float32)
    check("Pow", 1, [CUBE, exponents], CUBE ** exponents[:, None], broadcast=1, axis=1)


@pytest.mark.parametrize("name", ["Min", "Max", "Sum", "Mean"])
def test_variadic_at_every_opset(name):
    function = {"Min": np.minimum, "Max": np.maximum, "Sum": np.add, "Mean": lambda a, b: (a + b) / 2}[name]
    y = X[::-1].copy()
    check(name, 1, [X, y], function(X, y), consumed_inputs=(0, 0))
    check(name, 8, [X], X)
    check_against_runtime(name, 6, X, y)
    check_against_runtime(name, 8, X, X[0], X[:, :1])
    check_against_runtime(name, 13, X, X[0], X[:, :1])


@pytest.mark.parametrize(
    ("opset", "operands", "attributes"),
    [
        (6, [X], {"min": -1.0, "max": 2.0}),
        (6, [np.array([np.inf, -np.inf, np.nan, 1], np.float32)], {}),
        (6, [np.array([np.inf, 1], np.float16)], {}),
        (11, [X, np.float32(2), np.float32(-2)], {}),
        (11, [np.array([np.nan, -1], np.float32), np.float32(0)], {}),
        (12, [np.array([5, -5]), None, np.int64(2)], {}),
        (13, [np.array([5, 200], np.uint8), np.uint8(7), np.uint8(100)], {}),
    ],
)
def test_clip_at_every_opset(opset, operands, attributes):
    check_against_runtime("Clip", opset, *operands, **attributes)


def test_first_clip():
    check("Clip", 1, [X], np.clip(X, -1, None), min=-1.0, consumed_inputs=(0,))
    check("Clip", 1, [X], X)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers_are_divided_towards_zero(dtype):
    a, b = np.array([-7, 7, -7, 7, 6], dtype), np.array([2, -2, -2, 2, -3], dtype)
    check_against_runtime("Div", 7, a, b)
    check_against_runtime("Div", 14, a, dtype(2))
    assert elementwise.div(np.array([np.iinfo(dtype).min]), dtype(3))[0] == -(-int(np.iinfo(dtype).min) // 3)


def test_narrow_integers():
    a, b = np.array([7, 200], np.uint8), np.array([2, 100], np.uint8)
    for name in ("Add", "Sub", "Mul", "Div"):
        check_against_runtime(name, 14, a, b)


def test_remainders():
    a, b = np.array([-7, 7, -7, 7]), np.array([3, -3, -3, 3])
    check_against_runtime("Mod", 10, a, b)
    check_against_runtime("Mod", 10, a, b, fmod=1)
    check_against_runtime("Mod", 13, X, np.array([3, -3, 2, -2], np.float32), fmod=1)


@pytest.mark.parametrize("base", [np.float32, np.int32, np.int64])
@pytest.mark.parametrize("exponent", [np.float32, np.int32, np.int64])
def test_powers_have_the_dtype_of_the_base(base, exponent):
    check_against_runtime("Pow", 12, np.array([2, 3, 4], base), np.array([2, 3, 0], exponent))


def test_negative_powers_of_integers():
    check_against_runtime("Pow", 12, np.array([2, 3, 1, -1, -1]), np.array([-1, -1, -3, -3, -2]))
    check_against_runtime("Pow", 12, np.array([4, 9], np.int32), np.float32(0.5))


def test_gradients_of_powers_are_finite_at_zero():
    def gradient(exponent):
        return jax.grad(lambda x: elementwise.pow_(x, exponent).sum())(jnp.array([-1.0, 0.0, 2.0]))

    for exponent in (2.0, 2, jnp.float32(2), np.float32(2)):
        np.testing.assert_allclose(gradient(exponent), [-2, 0, 4])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.int32, jnp.int8])
def test_python_scalars_take_the_dtype_of_the_array(dtype):
    x = jnp.array([1, 2], dtype)
    scalar = 2.0 if jnp.issubdtype(dtype, jnp.floating) else 2
    with jax.numpy_dtype_promotion("strict"):
        for name in ("add", "sub", "mul", "div", "mod", "pow_", "min_", "max_", "sum_"):
            function = getattr(elementwise, name)
            assert function(x, scalar).dtype == dtype, name
            if (name, dtype) != ("pow_", jnp.int8):  # the specification has no such base
                assert function(scalar, x).dtype == dtype, name
        assert elementwise.clip(x, scalar, scalar).dtype == dtype
        assert elementwise.where(x > 1, x, scalar).dtype == dtype


def test_python_integers_stay_integers():
    assert (elementwise.div(-7, 2), elementwise.mod(-7, 2), elementwise.pow_(2, 3)) == (-3, 1, 8)
    assert elementwise.pow_(2, jnp.array([3.5])).dtype == jnp.int32
    np.testing.assert_array_equal(elementwise.div(7, jnp.array([-2])), [-3])


def test_symbols_stay_symbols():
    assert texts(elementwise.add(objects(N, 2), np.array(1))) == ["(x.shape[0] + 1)", "3"]
    assert texts(elementwise.sub(objects(N), objects(M))) == ["(x.shape[0] - x.shape[1])"]
    assert texts(elementwise.mul(objects(N, 2), np.array([3]))) == ["(x.shape[0] * 3)", "6"]
    assert texts(elementwise.div(objects(N, -7), np.array(2))) == ["(x.shape[0] // 2)", "-3"]
    assert texts(elementwise.div(np.array([64]), objects(N))) == ["(64 // x.shape[0])"]
    assert texts(elementwise.mod(objects(N, -7), np.array(2))) == ["(x.shape[0] % 2)", "1"]
    assert texts(elementwise.mod(objects(-7), np.array([2]), fmod=1)) == ["-1"]
    assert texts(elementwise.neg(objects(N))) == ["(0 - x.shape[0])"]
    assert texts(elementwise.abs_(objects(N, -3))) == ["x.shape[0]", "3"]
    assert texts(elementwise.max_(objects(N, 4), np.array([0]))) == ["x.shape[0]", "4"]
    assert texts(elementwise.min_(objects(N, 4), np.array([-1]))) == ["-1", "-1"]
    assert texts(elementwise.clip(objects(N, -3), np.array(0))) == ["x.shape[0]", "0"]
    assert texts(elementwise.where(np.array([True, False]), objects(N, N), np.array(1))) == ["x.shape[0]", "1"]
    assert texts(elementwise.sum_(objects(N), objects(M), np.array([1]))) == ["((x.shape[0] + x.shape[1]) + 1)"]


def test_what_symbols_cannot_do_is_a_type_error():
    for function in (elementwise.sqrt, elementwise.exp, elementwise.floor, elementwise.reciprocal, elementwise.is_nan):
        with pytest.raises(TypeError):
            function(objects(N))
    for attempt in (
        lambda: elementwise.min_(objects(N), np.array([3])),
        lambda: elementwise.div(objects(N - 5), np.array([2])),
        lambda: elementwise.pow_(objects(N), np.array([2])),
    ):
        with pytest.raises(TypeError):
            attempt()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda n: elementwise.min_(n, 5), 3),
        (lambda n: elementwise.max_(np.array([n]), np.array([5]))[0], 5),
        (lambda n: elementwise.div(n - 6, 2), -1),
        (lambda n: elementwise.div(7, n), 2),
        (lambda n: elementwise.clip(n, 0, 2), 2),
    ],
)
def test_symbolic_sizes_under_export(function, expected):
    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(lambda x: jnp.asarray(function(x.shape[0]))))(
        jax.ShapeDtypeStruct((n,), jnp.float32)
    )
    assert exported.call(jnp.ones(3)) == expected


def test_models_divide_shapes_as_integers():
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n] x) => (int64 y) <int64 ten = {10}, int64 two = {2}, int64 zero = {0}>
    { shape = Shape(x) n = Gather(shape, zero) less = Sub(n, ten) y = Div(less, two) }"""
    model = onnxeqx.load_model(onnx.parser.parse_model(text))
    for n, expected in ((7, -1), (13, 1)):
        assert model(np.ones(n, np.float32)) == expected
        assert eqx.filter_jit(model)(np.ones(n, np.float32)) == expected
