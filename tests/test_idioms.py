"""Equinox, Optax and JAX idioms on a loaded CNN and a loaded encoder: what works on any `eqx.Module` works on them."""

import copy
import functools
import math
import pickle

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import onnxeqx
from onnxeqx.nn import Buffer
from tests.sample_models import CNN, ENCODER, sample_model

IMAGES = {"input": ("batch", 3, 64, 64)}


@functools.cache
def load(name: str):
    return onnxeqx.load_model(sample_model(name), input_shapes=IMAGES if name == CNN else None)


def inputs_of(name: str, batch: int = 2, length: int = 7) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(batch)
    if name == CNN:
        return (generator.standard_normal((batch, 3, 64, 64)).astype(np.float32),)
    ids = generator.integers(0, 1000, (batch, length)).astype(np.int32)
    return ids, np.ones_like(ids), np.zeros_like(ids)


@pytest.fixture(params=[CNN, ENCODER])
def name(request) -> str:
    return request.param


@pytest.fixture
def model(name):
    return load(name)


@pytest.fixture
def inputs(name):
    return inputs_of(name)


def loss_of(model, inputs):
    return jnp.mean(model(*inputs) ** 2)


def buffers(model) -> list[np.ndarray]:
    leaves = jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, Buffer))
    return [np.asarray(leaf.bits) for leaf in leaves if isinstance(leaf, Buffer)]


def close(got, wanted, tolerance=1e-5):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * max(1.0, np.abs(wanted).max()))


# 1: filter_jit, no retracing, equal static parts.


def test_filter_jit_equals_eager_and_new_weights_do_not_retrace(model, inputs):
    call = eqx.filter_jit(eqx.debug.assert_max_traces(lambda m, x: m(*x), max_traces=1))
    close(call(model, inputs), model(*inputs))
    other = jax.tree.map(lambda leaf: leaf * 0.5 if eqx.is_inexact_array(leaf) else leaf, model)
    assert not np.allclose(call(other, inputs), call(model, inputs))


def test_loading_twice_gives_equal_static_parts(name):
    again = onnxeqx.load_model(sample_model(name), input_shapes=IMAGES if name == CNN else None)
    static, other = (eqx.partition(m, eqx.is_array)[1] for m in (load(name), again))
    assert eqx.tree_equal(static, other)


# 2, 21: plain jit, bound methods, lowering.


def test_plain_jit_of_a_lambda_and_of_the_bound_method(model, inputs):
    expected = model(*inputs)
    close(jax.jit(lambda *x: model(*x))(*inputs), expected)
    close(jax.jit(model.__call__)(*inputs), expected)
    assert "func" in jax.jit(model.__call__).lower(*inputs).as_text()


def test_a_model_is_an_argument_of_plain_jit(model, inputs):
    """Trap D: no Python number or bool is a leaf."""
    assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(model))
    close(jax.jit(lambda m, x: m(*x))(model, inputs), model(*inputs))


def test_plain_jit_of_the_model_itself_fails_as_for_every_module(model, inputs):
    with pytest.raises((TypeError, ValueError)):
        jax.jit(model)(*inputs)


# 3: gradients.


def test_gradients_are_for_parameters_only(model, inputs):
    value, gradients = eqx.filter_jit(eqx.filter_value_and_grad(loss_of))(model, inputs)
    assert np.isfinite(value)
    names = {
        path for path, leaf in onnxeqx.key_paths(gradients).items() if leaf is not None and not isinstance(leaf, Buffer)
    }
    parameters = {
        path
        for path, leaf in onnxeqx.key_paths(model).items()
        if not isinstance(leaf, Buffer) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    assert names == parameters
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


def test_forward_mode_agrees_with_reverse_mode(model, inputs):
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params):
        return loss_of(eqx.combine(params, static), inputs)

    direction = jax.tree.map(jnp.ones_like, params)
    _, forward = jax.jit(lambda p, d: jax.jvp(loss, (p,), (d,)))(params, direction)
    gradients = jax.jit(jax.grad(loss))(params)
    close(forward, sum(jnp.sum(leaf) for leaf in jax.tree.leaves(gradients)), 1e-3)


def test_vjp_with_a_cotangent_and_vmap_of_grad(model, inputs):
    params, static = eqx.partition(model, eqx.is_inexact_array)
    y, pull = jax.vjp(jax.jit(lambda p: eqx.combine(p, static)(*inputs)), params)
    (once,), (twice,) = pull(jnp.ones_like(y)), pull(2 * jnp.ones_like(y))
    jax.tree.map(lambda a, b: close(2 * a, b, 1e-4), once, twice)
    per_example = jax.jit(
        jax.vmap(jax.grad(lambda p, x: loss_of(eqx.combine(p, static), [i[None] for i in x])), in_axes=(None, 0))
    )(params, inputs)
    mean = jax.jit(jax.grad(lambda p: loss_of(eqx.combine(p, static), inputs)))(params)
    jax.tree.map(lambda a, b: close(a.mean(0), b, 1e-3), per_example, mean)


# 4, trap A: optimisers leave buffers alone.


def test_adamw_by_the_documented_idiom_leaves_buffers_bitwise_alone(model, inputs):
    optimizer = optax.adamw(1e-2, weight_decay=0.5)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        gradients = eqx.filter_grad(loss_of)(model, inputs)
        updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    trained = model
    for _ in range(2):
        trained, state = step(trained, state)
    assert all(np.array_equal(a, b) for a, b in zip(buffers(model), buffers(trained), strict=True))
    integers = [
        (a, b)
        for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(trained), strict=True)
        if not eqx.is_inexact_array(a)
    ]
    assert all(np.array_equal(a, b) for a, b in integers)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(trained), strict=True)
        if eqx.is_inexact_array(a)
    ]
    assert all(moved)


def test_the_cnn_has_buffers():
    assert len(buffers(load(CNN))) == 2 * 34


# 5, trap C: heads.


def test_a_plain_linear_head_of_another_width_works_and_trains(name, model, inputs):
    where = (lambda m: m.classifier[3]) if name == CNN else (lambda m: m.mods[0].classifier)
    head = eqx.nn.Linear(where(model).in_features, 7, key=jax.random.key(0))
    replaced = eqx.tree_at(where, model, head)
    assert replaced(*inputs).shape == (2, 7)
    gradients = eqx.filter_jit(eqx.filter_grad(loss_of))(replaced, inputs)
    assert float(jnp.abs(where(gradients).weight).max()) > 0
    extra = (where(model).bias is None) * 1
    assert len(jax.tree.leaves(replaced)) == len(jax.tree.leaves(model)) + extra


def test_a_head_of_several_layers_works(name, model, inputs):
    where = (lambda m: m.classifier[3]) if name == CNN else (lambda m: m.mods[0].classifier)
    head = eqx.nn.MLP(where(model).in_features, 5, 16, 1, key=jax.random.key(0))
    assert eqx.tree_at(where, model, head)(*inputs).shape == (2, 5)


# 6: freezing.


def test_a_frozen_body_is_bitwise_unchanged_and_has_no_gradients(name, model, inputs):
    pattern = "classifier.*" if name == CNN else "mods.0.classifier.*"
    trainable, frozen = eqx.partition(model, onnxeqx.parameters(model, trainable=pattern))

    @eqx.filter_jit
    def step(trainable):
        gradients = eqx.filter_grad(lambda t: loss_of(eqx.combine(t, frozen), inputs))(trainable)
        return jax.tree.map(lambda p, g: p - 0.1 * g, trainable, gradients), gradients

    trained, gradients = step(trainable)
    assert all(path.startswith(pattern.removesuffix("*")) for path in onnxeqx.key_paths(gradients))
    after = onnxeqx.key_paths(eqx.combine(trained, frozen))
    for path, leaf in onnxeqx.key_paths(model).items():
        same = eqx.tree_equal(leaf, after[path])
        assert bool(same) != path.startswith(pattern.removesuffix("*")), path


# 7, trap B: groups in Optax.


@pytest.mark.parametrize("combinator", ["masked", "adamw mask", "selective_transform"])
def test_optax_takes_masks_as_functions(name, model, inputs, combinator):
    pattern = "classifier.*" if name == CNN else "mods.0.classifier.*"
    params, _ = eqx.partition(model, eqx.is_inexact_array)

    def mask(params):
        return onnxeqx.parameters(params, trainable=pattern)

    optimizer = {
        "masked": lambda: optax.masked(optax.scale(0.0), mask),
        "adamw mask": lambda: optax.adamw(1.0, weight_decay=1.0, mask=mask),
        "selective_transform": lambda: optax.selective_transform(optax.scale(0.0), freeze_mask=mask),
    }[combinator]()
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    chosen = {path for path, leaf in onnxeqx.key_paths(updates).items() if float(jnp.abs(leaf).max()) > 0}
    if combinator == "adamw mask":
        expected = {path for path in onnxeqx.key_paths(params) if path.startswith(pattern[:-1])}
        nonzero = {path for path, leaf in onnxeqx.key_paths(params).items() if float(jnp.abs(leaf).max()) > 0}
        assert chosen == expected & nonzero
    else:
        assert chosen == set()


def test_parameter_groups_by_label(name, model):
    pattern = "classifier.*" if name == CNN else "mods.0.classifier.*"
    params, _ = eqx.partition(model, eqx.is_inexact_array)
    optimizer = onnxeqx.partition(
        {"head": optax.sgd(1.0), "body": optax.set_to_zero()}, {"head": pattern}, default="body"
    )
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    for path, leaf in onnxeqx.key_paths(updates).items():
        assert float(leaf.reshape(-1)[0]) == (-1.0 if path.startswith(pattern[:-1]) else 0.0), path


# 9: serialisation.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tree_serialisation_round_trips_bitwise(model, tmp_path, dtype):
    stored = jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, model)
    eqx.tree_serialise_leaves(tmp_path / "m.eqx", stored)
    skeleton = eqx.filter_eval_shape(lambda: stored)
    assert eqx.tree_equal(eqx.tree_deserialise_leaves(tmp_path / "m.eqx", skeleton), stored)


# 11: vmap and ensembles.


def test_vmap_over_examples_and_ensembles(model, inputs):
    close(jax.vmap(lambda *x: model(*(i[None] for i in x))[0])(*inputs), model(*inputs), 1e-4)
    other = jax.tree.map(lambda leaf: leaf * 1.01 if eqx.is_inexact_array(leaf) else leaf, model)
    ensemble = jax.tree.map(lambda *leaves: jnp.stack(leaves), model, other)
    both = eqx.filter_vmap(lambda m: m(*inputs), in_axes=eqx.if_array(0))(ensemble)
    close(both[0], model(*inputs), 1e-4)
    close(both[1], other(*inputs), 1e-4)


# 12: scan and cond.


def test_scan_over_training_steps_equals_a_loop(model, inputs):
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def step(params, _):
        value, gradients = jax.value_and_grad(lambda p: loss_of(eqx.combine(p, static), inputs))(params)
        return jax.tree.map(lambda p, g: p - 1e-5 * g, params, gradients), value

    scanned, losses = jax.jit(lambda p: jax.lax.scan(step, p, None, length=2))(params)
    first, value = jax.jit(lambda p: step(p, None))(params)
    close(losses[0], value, 1e-4)
    second, _ = jax.jit(lambda p: step(p, None))(first)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), scanned, second)


def test_cond_with_the_model_closed_over(model, inputs):
    result = jax.jit(lambda flag: jax.lax.cond(flag, lambda: model(*inputs), lambda: jnp.zeros_like(model(*inputs))))(
        True
    )
    close(result, model(*inputs), 1e-4)


def test_a_float32_model_keeps_float32_with_x64_on(name, inputs):
    with jax.enable_x64(True):
        model = onnxeqx.load_model(sample_model(name), input_shapes=IMAGES if name == CNN else None)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(model) if eqx.is_inexact_array(leaf)} == {"float32"}
        assert model(*inputs).dtype == jnp.float32
        assert eqx.filter_jit(model)(*inputs).dtype == jnp.float32


# 13: rematerialisation.


def test_checkpointing_gives_the_same_gradients(model, inputs):
    plain = eqx.filter_jit(eqx.filter_grad(loss_of))(model, inputs)
    saved = eqx.filter_jit(eqx.filter_grad(lambda m, x: jnp.mean(eqx.filter_checkpoint(m)(*x) ** 2)))(model, inputs)
    jax.tree.map(
        lambda a, b: close(a, b, 1e-4), eqx.filter(plain, eqx.is_inexact_array), eqx.filter(saved, eqx.is_inexact_array)
    )


# 14: export with a symbolic batch.


def test_export_with_a_symbolic_batch(name, model):
    leaves, structure = jax.tree.flatten(model)
    (batch,) = jax.export.symbolic_shape("batch")
    examples = inputs_of(name, batch=1)
    structs = [jax.ShapeDtypeStruct((batch, *array.shape[1:]), array.dtype) for array in examples]
    function = jax.jit(lambda leaves, *x: jax.tree.unflatten(structure, leaves)(*x))
    exported = jax.export.export(function)([jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves], *structs)
    again = jax.export.deserialize(exported.serialize())
    for size in (1, 3):
        inputs = inputs_of(name, batch=size)
        close(again.call(leaves, *inputs), model(*inputs), 1e-4)


def test_export_for_tpu(name, model):
    leaves, structure = jax.tree.flatten(model)
    function = jax.jit(lambda leaves, *x: jax.tree.unflatten(structure, leaves)(*x))
    assert jax.export.export(function, platforms=["tpu"])(leaves, *inputs_of(name)).platforms == ("tpu",)


# 18: the flatten/unflatten trick.


def test_the_flatten_unflatten_trick(model, inputs):
    leaves, structure = jax.tree.flatten(model)
    step = jax.jit(lambda leaves: jax.tree.leaves(jax.tree.unflatten(structure, leaves)))
    assert eqx.tree_equal(jax.tree.unflatten(structure, step(leaves)), model)


# 19: printing, copying, pickling, shapes.


def test_the_printed_tree_is_short(model):
    text = eqx.tree_pformat(model)
    assert len(text.splitlines()) < 12 * len(onnxeqx.key_paths(model))
    assert max(map(len, text.splitlines())) < 200


def test_copies_and_pickles_are_equal(model):
    assert eqx.tree_equal(copy.deepcopy(model), model)
    assert eqx.tree_equal(pickle.loads(pickle.dumps(model)), model)
    eqx.tree_check(copy.deepcopy(model))


def test_shapes_without_computing(model, inputs):
    structs = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in inputs]
    result = eqx.filter_eval_shape(model, *structs)
    assert (result.shape, result.dtype) == (model(*inputs).shape, jnp.float32)


# 20: casts of the whole model.


def test_a_bfloat16_cast_gives_a_bfloat16_output(model, inputs):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf, model)
    result = eqx.filter_jit(half)(*inputs)
    assert result.dtype == jnp.bfloat16
    integers = [
        (a, b)
        for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(half), strict=True)
        if not eqx.is_inexact_array(a)
    ]
    assert all(np.array_equal(a, b) for a, b in integers)
    assert float(jnp.abs(result.astype(jnp.float32) - model(*inputs)).max()) < 0.2 * float(
        jnp.abs(model(*inputs)).max()
    )


def test_a_float64_cast_is_float64_all_through(name, inputs):
    with jax.enable_x64(True):
        shapes = IMAGES if name == CNN else None
        model = onnxeqx.load_model(sample_model(name), input_shapes=shapes)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf, model)
        result = wide(*inputs)
        assert result.dtype == jnp.float64
        oracle = float64_oracle(name, inputs)
        np.testing.assert_allclose(result, oracle, rtol=1e-10, atol=1e-10 * np.abs(oracle).max())


def float64_oracle(name, inputs) -> np.ndarray:
    """The same graph with float64 initializers, constants and casts, by the standard's own NumPy evaluator."""
    import onnx
    from onnx import TensorProto, numpy_helper
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    proto = onnx.ModelProto()
    proto.CopyFrom(sample_model(name))

    def widen(tensor: TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))

    for tensor in proto.graph.initializer:
        widen(tensor)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                widen(attribute.t)
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    names = [value.name for value in proto.graph.input]
    arrays = [array.astype(np.float64) if array.dtype == np.float32 else array.astype(np.int64) for array in inputs]

    class LayerNormalization(OpRun):
        """The standard's evaluator computes this one in float32, whatever its input."""

        op_domain = ""

        def _run(self, x, scale, bias=None, axis=None, epsilon=None, stash_type=None):
            deviation = np.sqrt(x.var(axis, keepdims=True) + epsilon)
            return ((x - x.mean(axis, keepdims=True)) / deviation * scale + bias,)

    class Erf(OpRun):
        """Likewise in float32."""

        op_domain = ""

        def _run(self, x):
            return (np.vectorize(math.erf, otypes=[np.float64])(x),)

    (result,) = ReferenceEvaluator(proto, new_ops=[LayerNormalization, Erf]).run(
        None, dict(zip(names, arrays, strict=True))
    )
    assert result.dtype == np.float64
    return result


# 21: inside a user's own module.


def test_the_model_is_a_field_of_a_users_module(model, inputs):
    class Wrapped(eqx.Module):
        body: eqx.Module
        scale: jax.Array

        def __call__(self, *x):
            return self.scale * self.body(*x)

    wrapped = Wrapped(model, jnp.float32(2.0))
    close(eqx.filter_jit(wrapped)(*inputs), 2 * model(*inputs))
    gradients = eqx.filter_grad(lambda m: jnp.mean(m(*inputs) ** 2))(wrapped)
    assert float(gradients.scale) > 0


# 22, 23: sizes and names.


def test_other_sizes_without_reloading(name, model):
    for batch, length in ((1, 4), (3, 11)):
        inputs = inputs_of(name, batch, length)
        assert model(*inputs).shape[0] == batch
        close(model(*(array[:1] for array in inputs)), model(*inputs)[:1], 1e-4)


def test_a_wrong_rank_is_refused_with_the_way_out(model, inputs):
    with pytest.raises(onnxeqx.InputError, match=r"dimensions.*x\[None\]"):
        model(inputs[0][0], *inputs[1:])


def test_a_fixed_dimension_that_differs_is_refused_with_the_way_out():
    with pytest.raises(onnxeqx.InputError, match="input_shapes"):
        load(CNN)(np.zeros((1, 3, 32, 32), np.float32))


def test_inputs_by_name_and_names_of_outputs(name, model, inputs):
    by_name = dict(zip(model.input_names, inputs, strict=True))
    close(model(**by_name), model(*inputs))
    close(eqx.filter_jit(model)(**by_name), model(*inputs))
    assert model.output_names == (("output",) if name == CNN else ("logits",))


def test_several_outputs_are_a_tuple_in_graph_order():
    import onnx

    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] b, float[n] a) { a = Neg(x) b = Exp(x) }'
    )
    model = onnxeqx.load_model(onnx.parser.parse_model(text))
    assert model.output_names == ("b", "a")
    b, a = model(np.ones(2, np.float32))
    close(b, np.full(2, np.e, np.float32))
    close(a, np.full(2, -1.0))
