"""Real models against ONNX Runtime: every export, eagerly and under jit, at two batch sizes and two sequence lengths.

Slow; run with `pytest -m zoo`. Needs `../shared/zoo`; published packages are fetched through pip.
"""

import pathlib
import subprocess
import sys

import equinox as eqx
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxeqx
from onnxeqx._convert import convert
from onnxeqx._load import build
from onnxeqx._read import read
from onnxeqx._verify import compare, random_inputs, run_onnxruntime
from tests.sample_models import fill

pytestmark = pytest.mark.zoo


@pytest.fixture(autouse=True)
def forget_compiled_models():
    """Compiled models hold memory, and each test has a model of its own."""
    yield
    import jax

    jax.clear_caches()


ZOO = pathlib.Path(__file__).parents[2] / "shared" / "zoo"
LIGHT = pathlib.Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
PACKAGED = ("magika", "paraphrase_minilm_l3", "ppocrv4_rec", "silero_vad", "lac_encoder", "ppocrv4_det")
MODELS = sorted(path.stem for path in (ZOO / "models").glob("*.onnx"))
# Sizes of dimensions that a file leaves open. Beyond images and tokens: GPT-2 with a cache declares past and total.
SIZES = (
    {"batch": 2, "seq": 12, "past": 3, "total": 15, "dseq": 5, "eseq": 12},
    {"batch": 3, "seq": 7, "past": 5, "total": 12, "dseq": 4, "eseq": 7},
)

# Heights and widths that a network takes, where not any.
IMAGES = {"ppocrv4_det": (64, 96)}


def require_zoo() -> None:
    if not ZOO.is_dir():
        pytest.fail(f"{ZOO} is not there: the zoo suite checks nothing without it")


def sizes_of(model, run: int, image: int) -> dict[str, int]:
    """Sizes for all symbolic dimensions: the first axis is a batch, others are lengths; equal names are equal sizes."""
    known = dict(SIZES[run])
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            name = getattr(dim, "value", None) or f"{value.name}[{axis}]"
            if not (isinstance(dim, int) and dim > 0):
                images = len(value.shape) == 4
                known.setdefault(name, SIZES[run]["batch"] if axis == 0 else image if images else SIZES[run]["seq"])
    return known


def check(path: pathlib.Path, draw=random_inputs, static: tuple[str, ...] = ()) -> None:
    """Eagerly and under jit, where `static` inputs are constants."""
    model = read(path)
    live = build(convert(model, path.name))
    fixed = all(isinstance(dim, int) and dim > 0 for value in model.graph.inputs for dim in value.shape or ())
    for run in (0,) if fixed else (0, 1):
        inputs = draw(model, seed=run, sizes=sizes_of(model, run, IMAGES.get(path.stem, (48, 64))[run]))
        expected = run_onnxruntime(path, inputs)
        known = {name: inputs[name] for name in static}
        traced = {name: array for name, array in inputs.items() if name not in known}
        jitted = eqx.filter_jit(lambda model, traced, known=known: model(**traced, **known))
        for result in (live(**inputs), jitted(live, traced)):
            results = result if isinstance(result, tuple) else (result,)
            for name, got, wanted in zip(live.output_names, results, expected, strict=True):
                difference = compare(name, "", np.asarray(got), wanted, rtol=1e-3, atol=1e-4)
                assert difference.agrees or ours_agrees_with_float64(live, inputs, got, wanted), difference


def ours_agrees_with_float64(live, inputs, got, wanted) -> bool:
    """Whether ours is within the tolerance of the model in float64, where ONNX Runtime's float32 is the one that is not.

    efficientnet_b0 is ill-conditioned: ONNX Runtime is up to 1.7e-4 of the scale away from float64, ours 1.0e-4. It must be
    within twice the tolerance all the same, so that a model which is wrong in both precisions does not pass.
    """
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf, live)
        true = np.asarray(eqx.filter_jit(wide)(**inputs))
    ours, theirs = (
        compare("", "", np.asarray(got), true, rtol=1e-3, atol=1e-4),
        compare("", "", wanted, true, rtol=1e-3, atol=2e-4),
    )
    return ours.agrees and theirs.agrees


def random_bytes(model, *, seed: int, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Contents of a file, for magika: bytes, and 256 for padding."""
    return {"bytes": np.random.default_rng(seed).integers(0, 257, (seed + 1, 2048)).astype(np.int32)}


def sound(model, *, seed: int, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """For silero: 32 ms of sound with what was before it, at either rate that it knows."""
    generator, rate = np.random.default_rng(seed), (16_000, 8_000)[seed]
    return {
        "input": generator.standard_normal((seed + 2, rate * 36 // 1000)).astype(np.float32) * np.float32(0.1),
        "state": generator.standard_normal((2, seed + 2, 128)).astype(np.float32) * np.float32(0.1),
        "sr": np.array(rate),
    }


DRAWS = {"magika": (random_bytes, ()), "silero_vad": (sound, ("sr",))}


@pytest.mark.parametrize("name", MODELS or ["zoo"])
def test_exports(name, tmp_path):
    require_zoo()
    path = tmp_path / f"{name}.onnx"
    onnx.save(without_dropout(fill(onnx.load(ZOO / "models" / f"{name}.onnx"))), path)
    check(path)


def without_dropout(model: onnx.ModelProto) -> onnx.ModelProto:
    """In training mode ONNX Runtime drops at random: at a ratio of 0, nothing is left to chance."""
    ratios = {node.input[1] for node in model.graph.node if node.op_type == "Dropout" and len(node.input) > 1}
    for node in model.graph.node:
        if node.output[0] in ratios:
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.zeros((), np.float32)))
    return model


def test_real_efficientnet():
    require_zoo()
    check(ZOO / "real" / "efficientnet_lite0_imagenet.onnx")


@pytest.mark.parametrize("name", PACKAGED)
def test_models_in_published_packages(name, tmp_path):
    require_zoo()
    subprocess.run([sys.executable, str(ZOO / "fetch.py"), str(tmp_path), name], check=True)
    check(tmp_path / f"{name}.onnx", *DRAWS.get(name, (random_inputs, ())))


@pytest.mark.parametrize("path", sorted(LIGHT.glob("light_*.onnx")), ids=lambda path: path.stem)
def test_light_networks_with_seeded_weights(path, tmp_path):
    onnx.save(seeded(onnx.load(path)), tmp_path / path.name)
    check(tmp_path / path.name)


def seeded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with its constant fills replaced by seeded random weights: He-scaled kernels, positive statistics."""
    generator = np.random.default_rng(0)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scales = {
        name
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
        for name in (node.input[1], node.input[4])
    }
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shape, name = tuple(shapes[node.input[0]]), node.output[0]
            values = generator.standard_normal(shape).astype(np.float32)
            values *= np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
            values = np.abs(values) + 1 if name in scales else values
            node.CopyFrom(onnx.helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values)))
    return model


@pytest.mark.parametrize(
    "name", ["resnet50.ts", "squeezenet1_1.dyn", "densenet121.ts", "googlenet.dyn", "bert_small.ts"]
)
def test_gradients_are_finite_and_agree_with_finite_differences(name, tmp_path):
    require_zoo()
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True):
        model = onnxeqx.load_model(fill(onnx.load(ZOO / "models" / f"{name}.onnx")), input_shapes=small_images(name))
        model = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf, model)
        params, static = eqx.partition(model, onnxeqx.parameters(model))
        inputs = gradient_inputs(name)

        @eqx.filter_jit
        def loss(params):
            return jnp.mean(eqx.combine(params, static)(**inputs) ** 2)

        gradients = eqx.filter_jit(eqx.filter_grad(loss))(params)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
        assert len(jax.tree.leaves(gradients)) == len(jax.tree.leaves(params))
        check_directions(loss, params, gradients)


def small_images(name):
    return None if name.startswith("bert") else {"input": ("batch", 3, 96, 96)}


def gradient_inputs(name):
    generator = np.random.default_rng(0)
    if name.startswith("bert"):
        ids = generator.integers(0, 1000, (2, 8))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {"input": generator.standard_normal((2, 3, 96, 96))}


def check_directions(loss, params, gradients) -> None:
    """Along random directions in a sample of leaves, the derivative equals the central difference in float64.

    Steps of three widths: in a piecewise linear network a wide one may cross kinks (ResNet-50: off by 2e-3 at 1e-6, by 4e-8
    at 1e-7), and a narrow one loses digits to rounding. A wrong derivative fits none.
    """
    import jax
    import jax.numpy as jnp

    leaves, structure = jax.tree.flatten(params)
    slopes = jax.tree.leaves(gradients)
    sample = np.random.default_rng(1).choice(len(leaves), size=min(12, len(leaves)), replace=False)
    for index in sample:
        direction = np.random.default_rng(int(index)).standard_normal(leaves[index].shape)
        direction *= float(jnp.linalg.norm(leaves[index].reshape(-1)) + 1e-3) / np.linalg.norm(direction)

        def along(amount, index=index, direction=direction):
            moved = [leaf + amount * direction if i == index else leaf for i, leaf in enumerate(leaves)]
            return float(loss(jax.tree.unflatten(structure, moved)))

        exact, scale = float(jnp.sum(slopes[index] * direction)), abs(along(0.0))
        differences = {step: (along(step) - along(-step)) / (2 * step) for step in (1e-6, 1e-7, 1e-8)}
        rounding = 16 * np.finfo(np.float64).eps * scale
        assert any(
            abs(difference - exact) <= 1e-4 * max(abs(exact), abs(difference)) + rounding / step
            for step, difference in differences.items()
        ), (index, exact, differences)
