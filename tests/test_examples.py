"""The scripts in `examples/`, run in their short form as a user runs them; each must show that it learnt."""

import pathlib
import re
import runpy
import sys

import equinox as eqx
import jax
import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest

import onnxeqx

pytestmark = pytest.mark.slow
sklearn_datasets = pytest.importorskip("sklearn.datasets", reason="the examples need onnxeqx[examples]")

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
NETWORKS = {"resnet50": 2048, "squeezenet": 512, "densenet121": 1024, "inception_v1": 1024}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script with `--short`, and gives what it printed."""

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [name, "--short", *map(str, options)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def before_and_after(printed):
    (figures,) = re.findall(r": ([\d.]+) before, ([\d.]+) after", printed)
    return tuple(map(float, figures))


def test_transfer_learning_learns_digits(run):
    printed = run("transfer_learning", "--network", "squeezenet")
    before, after = before_and_after(printed)
    assert "freshly drawn" in printed
    assert before < 0.3
    assert after > 0.7


@pytest.mark.parametrize(("network", "channels"), NETWORKS.items())
def test_transfer_learning_loads_each_network_for_small_images_and_draws_its_weights(network, channels):
    script = runpy.run_path(str(EXAMPLES / "transfer_learning.py"))
    structure = script["load_features"](script["LIGHT"] / f"light_{network}.onnx", script["FEATURES"][network])
    assert all(np.ptp(leaf) == 0 for leaf in jax.tree.leaves(structure) if leaf.ndim == 4)  # one constant in the file
    model = script["drawn"](structure, jax.random.key(0))
    features = eqx.filter_eval_shape(model, jax.ShapeDtypeStruct((2, 3, 64, 64), np.float32))
    assert features.shape[:2] == (2, channels)
    for path, leaf in onnxeqx.key_paths(model).items():
        values = np.asarray(leaf.value if isinstance(leaf, onnxeqx.nn.Buffer) else leaf)
        if values.ndim == 4:
            assert values.std() == pytest.approx(np.sqrt(2 / values[0].size), rel=0.1), path
        elif path.endswith(("running_mean", "bias")):
            assert not values.any(), path
        elif path.endswith("running_var"):
            assert np.all(values == 1), path


def test_sentence_classifier_beats_chance(run):
    printed = run("sentence_classifier")
    _, after = before_and_after(printed)
    (guessed,) = re.findall(r"frequent answer: ([\d.]+)\.", printed)
    assert after > float(guessed) + 0.1


def test_gpt2_lora_lowers_the_loss_and_what_it_saves_is_what_it_trained(run, tmp_path):
    printed = run("gpt2_lora", "--output", tmp_path)
    before, after = before_and_after(printed)
    assert before == pytest.approx(np.log(1000), abs=0.1)  # of a thousand ids, each as likely as the others
    assert after < 4
    trained, frozen = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:trained|frozen)", printed))
    assert trained < frozen / 10
    onnx.checker.check_model(onnx.load(tmp_path / "merged.onnx"))
    base = onnxeqx.load_model(runpy.run_path(str(EXAMPLES / "gpt2_lora.py"))["small_gpt2"]())
    model = onnxeqx.load_lora(base, tmp_path / "lora.safetensors")
    ids, cache = np.arange(5)[None], np.zeros((1, 4, 0, 32), np.float32)
    given = dict(zip(base.input_names, (ids, np.ones_like(ids), cache, cache, cache, cache), strict=True))
    served = np.asarray(onnxruntime.InferenceSession(tmp_path / "merged.onnx").run(["logits"], given)[0])
    np.testing.assert_allclose(served, model(**given)[0], atol=1e-3)
    assert np.abs(served - base(**given)[0]).max() > 1


def test_style_transfer_lowers_the_loss_and_keeps_the_photograph(run, tmp_path):
    before, after = before_and_after(run("style_transfer", "--output", tmp_path))
    assert after < before / 2
    with PIL.Image.open(tmp_path / "painted.png") as image:
        painted = np.asarray(image, np.float32) / 255
    photograph = runpy.run_path(str(EXAMPLES / "style_transfer.py"))["photograph"](None, "china.jpg", 64)
    original = np.asarray(photograph)[0].transpose(1, 2, 0)
    assert painted.shape == original.shape
    assert np.corrcoef(painted.ravel(), original.ravel())[0, 1] > 0.5
    assert np.abs(painted - original).mean() > 0.02


def test_tabular_agrees_with_scikit_learn_and_learns_the_second_clinic(run, tmp_path):
    pytest.importorskip("skl2onnx", reason="this example exports with skl2onnx")
    printed = run("tabular", "--output", tmp_path)
    before, after = before_and_after(printed)
    assert "scikit-learn and JAX agree" in printed
    assert "ONNX Runtime gives the same answers" in printed
    assert before < 0.8
    assert after > 0.9


def test_gan_approaches_the_distribution_of_digits(run, tmp_path):
    printed = run("gan", "--output", tmp_path)
    before, after = before_and_after(printed)
    assert before > 40
    assert after < 6  # 18.8 for the mean digit, again and again
    with PIL.Image.open(tmp_path / "digits.png") as grid:
        assert grid.size == (512, 128)
    session = onnxruntime.InferenceSession(tmp_path / "generator.onnx")
    noise = np.random.default_rng(0).normal(size=(500, 32)).astype(np.float32)
    images = np.asarray(session.run(None, {"input": noise})[0])
    digits = sklearn_datasets.load_digits().data / 8 - 1
    assert np.abs(images.mean(0) - digits.mean(0)).mean() < 0.15


def test_the_code_in_the_docs_of_training_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "docs" / "training.md").read_text(), re.DOTALL)
    found = {}
    exec("\n".join(blocks), found)
    assert [row["epoch"] for row in found["history"]] == [0, 1, 2]
    images = np.zeros((4, 3, 64, 64), np.float32)
    *_, value = found["step"](found["trainable"], found["frozen"], found["state"], images, np.zeros(4, np.int32))
    assert np.isfinite(value)
    served = onnxruntime.InferenceSession(tmp_path / "two.onnx").run(None, {"input": images})[0]
    np.testing.assert_allclose(served, found["model"](images), rtol=1e-3, atol=1e-4)
