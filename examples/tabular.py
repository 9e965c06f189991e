"""A scikit-learn network goes to JAX, learns on, and is served by ONNX Runtime.

A clinic trains a pipeline (a scaler and an MLP) on breast cancer data (https://doi.org/10.24432/C5DW2B). A second clinic's
instrument reads 20 % higher, which costs accuracy; the network is fine-tuned on that clinic's patients and saved again.

usage: python examples/tabular.py [--model YOURS.onnx] [--steps N] [--output FOLDER]

`--model` takes another network for this data, with the output `probabilities`, as skl2onnx writes it.
"""

import argparse
import pathlib
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import onnxruntime
import optax
from sklearn.datasets import load_breast_cancer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import onnxeqx
from onnxeqx.training import cross_entropy_from_probabilities


def exported(pipeline: Pipeline, features: np.ndarray) -> Any:
    """The pipeline as an `onnx.ModelProto`."""
    try:
        import skl2onnx
    except ImportError:
        raise SystemExit(
            "This example exports a scikit-learn pipeline: pip install skl2onnx, or give --model."
        ) from None
    return skl2onnx.to_onnx(pipeline, features[:1], options={"zipmap": False})


def fine_tune(model: Any, features: np.ndarray, labels: np.ndarray, *, steps: int) -> Any:
    trainable, frozen = eqx.partition(model, onnxeqx.parameters(model))
    optimizer = optax.adamw(3e-3)

    @eqx.filter_value_and_grad
    def loss_and_grads(trainable, frozen, features, labels):
        probabilities = eqx.combine(trainable, frozen)(features)
        return cross_entropy_from_probabilities(probabilities, labels).mean()

    @eqx.filter_jit
    def step(trainable, frozen, opt_state, features, labels):
        loss, grads = loss_and_grads(trainable, frozen, features, labels)
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        return eqx.apply_updates(trainable, updates), opt_state, loss

    opt_state = optimizer.init(trainable)
    batch = jnp.asarray(features), jnp.asarray(labels)
    for _ in range(steps):
        trainable, opt_state, _ = step(trainable, frozen, opt_state, *batch)
    return eqx.combine(trainable, frozen)


def accuracy(model: Any, features: np.ndarray, labels: np.ndarray) -> float:
    return float(jnp.mean(model(features).argmax(-1) == labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, help="an ONNX file; by default a pipeline trained here")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/tabular"))
    parser.add_argument("--short", action="store_true", help="fewer steps, for a quick look")
    options = parser.parse_args()

    patients, diagnoses = (np.asarray(array) for array in load_breast_cancer(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(patients))
    patients, diagnoses = patients[order].astype(np.float32), diagnoses[order].astype(np.int32)
    first, second, held_out = np.split(patients, [280, 420])
    second, held_out = 1.2 * second, 1.2 * held_out
    first_labels, second_labels, held_out_labels = np.split(diagnoses, [280, 420])

    if options.model:
        model = onnxeqx.load(options.model, outputs=["probabilities"])
    else:
        network = MLPClassifier((32,), early_stopping=True, max_iter=1000, random_state=0)
        pipeline = make_pipeline(StandardScaler(), network).fit(first, first_labels)
        model = onnxeqx.load_model(exported(pipeline, first), outputs=["probabilities"])
        probabilities = model(first)
        assert np.array_equal(probabilities.argmax(-1), pipeline.predict(first))
        np.testing.assert_allclose(probabilities, pipeline.predict_proba(first), atol=1e-5)
        print(f"scikit-learn and JAX agree on {len(first)} patients.")

    before = accuracy(model, held_out, held_out_labels)
    model = fine_tune(model, second, second_labels, steps=100 if options.short else options.steps)
    after = accuracy(model, held_out, held_out_labels)
    print(f"Accuracy at the second clinic: {before:.3f} before, {after:.3f} after.")

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "model.onnx"
    onnxeqx.save_onnx(model, path)
    session = onnxruntime.InferenceSession(path)
    served = np.asarray(session.run(None, {session.get_inputs()[0].name: held_out})[0])
    np.testing.assert_allclose(served, model(held_out), atol=1e-5)
    assert np.array_equal(served.argmax(-1), model(held_out).argmax(-1))
    print(f"ONNX Runtime gives the same answers from {path}.")


if __name__ == "__main__":
    main()
