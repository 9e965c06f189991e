"""What a run leaves: the model in every form, and a report for people."""

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import onnxeqx

from .._weights import write_whole
from ..nn import LoRAConv, LoRALinear
from .folder import CONFUSION, FOLDER, LORA, ONNX, PREPROCESSING, REPORT, RESULTS, SCATTER, TOKENIZER, WEIGHTS
from .prepare import Prepared
from .report import memory_bytes
from .step import make_predict_step

if TYPE_CHECKING:
    from . import page

WORST = 12
"""How many of the worst mistakes the report shows."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model gives for all validation examples, in their order.

    - `outputs`: of the model; its first axis is the example.
    - `labels`: as the data has them.
    - `losses`: shape `(examples,)`.
    """

    outputs: np.ndarray
    labels: Any
    losses: np.ndarray


def leave(
    prepared: Prepared,
    trained: Any,
    history: Sequence[Mapping[str, float]],
    folder: pathlib.Path,
    *,
    timings: Mapping[str, float],
) -> Any:
    """Writes the files of a finished run.

    **Arguments:**

    - `prepared`: the run.
    - `trained`: its best model, as it was trained.
    - `history`: all rows.
    - `folder`: where to.
    - `timings`: seconds of the run's parts, by name.

    **Returns:** the model of plain layers.
    """
    save_model(prepared, trained, folder)
    model = prepared.finished(trained)
    report(prepared, trained, history, folder, timings=timings)
    return model


def save_model(prepared: Prepared, trained: Any, folder: pathlib.Path) -> None:
    """Writes `weights.safetensors`, `model/`, `model.onnx` and `preprocessing.json`, and the low-rank updates by themselves."""
    config, model = prepared.config, prepared.finished(trained)
    write_whole(folder / PREPROCESSING, prepared.description + "\n")
    if config.tokenizer is not None:
        shutil.copyfile(config.tokenizer, folder / TOKENIZER)
    adapted = (LoRALinear, LoRAConv)
    if any(
        isinstance(node, adapted) for node in jax.tree.leaves(trained, is_leaf=lambda node: isinstance(node, adapted))
    ):
        onnxeqx.save_lora(trained, folder / LORA)
    onnxeqx.save_weights(model, folder / WEIGHTS)
    onnxeqx.save(model, folder / FOLDER, force=True)
    onnxeqx.save_onnx(model, folder / ONNX, metadata={"onnxeqx.preprocessing": prepared.description})


def predictions(prepared: Prepared, model: Any) -> Predictions:
    """What a model gives for the validation part.

    **Arguments:**

    - `prepared`: the run.
    - `model`: as it was trained, or of plain layers.
    """
    predict = make_predict_step(forward=prepared.forward, compute_dtype=prepared.compute_dtype)
    loss = jax.jit(prepared.validation_loss)
    outputs, labels, losses = [], [], []
    for batch in prepared.data.validation_batches():
        given = predict(model, batch.inputs)
        kept = batch.mask
        losses.append(np.asarray(loss(given, batch.labels))[kept])
        first = given[0] if isinstance(given, tuple) else given
        outputs.append(np.asarray(first)[kept])
        labels.append(np.asarray(batch.labels)[kept])
    return Predictions(np.concatenate(outputs), np.concatenate(labels), np.concatenate(losses))


def report(
    prepared: Prepared,
    model: Any,
    history: Sequence[Mapping[str, float]],
    folder: pathlib.Path,
    *,
    timings: Mapping[str, float],
) -> None:
    """Writes `results.png`, `report.html`, and what the task has beside: `confusion_matrix.png` or `predictions.png`."""
    # Here, not above: drawing costs a second to import, which only the end of a run needs.
    from . import figures, page
    from .scores import class_scores, confusion

    config, names, column = prepared.config, prepared.dataset.class_names, prepared.monitor.column
    best = prepared.monitor.best(history)
    plots = {"Training": (RESULTS, figures.results(history, best=int(best["epoch"])))}
    scores, mistakes = (), ()
    if prepared.task.labels in ("class", "numbers", "token classes"):
        found = predictions(prepared, model)
        if prepared.task.labels == "numbers":
            predicted, wanted = (values.reshape(len(values), -1)[:, 0] for values in (found.outputs, found.labels))
            plots["Predictions"] = SCATTER, figures.scatter(predicted, wanted, names[0])
        else:
            counts = confusion(*_counted(found), len(names))
            plots["Confusion matrix"] = CONFUSION, figures.confusion_matrix(counts, names)
            scores = class_scores(counts, names)
        if prepared.task.labels == "class":
            mistakes = worst(prepared, found)
    pictures = {heading: figures.png(figure) for heading, (_, figure) in plots.items()}
    for heading, (name, _) in plots.items():
        write_whole(folder / name, pictures[heading])
    page.write(
        page.Report(
            title=f"{pathlib.Path(config.model).stem} on {pathlib.Path(config.data).stem}",
            summary={
                f"best {column.removeprefix('val_')}": f"{best[column]:.4f} (epoch {int(best['epoch'])})",
                "before training": f"{history[0][column]:.4f}",
                "task": prepared.task.name,
                "examples": f"{len(prepared.data.training):,} for training, {len(prepared.data.validation):,} for validation",
                "parameters trained": f"{prepared.trained_parameters:,}",
                "largest memory": f"{memory_bytes() / 2**30:.2f} GiB",
            },
            history=history,
            configuration=dataclasses.asdict(config),
            timings=timings,
            figures={heading: figures.data_uri(picture) for heading, picture in pictures.items()},
            scores=scores,
            mistakes=mistakes,
        ),
        folder / REPORT,
    )


def worst(prepared: Prepared, found: Predictions) -> tuple["page.Mistake", ...]:
    """The validation examples that are wrong by the largest loss."""
    from . import page

    labels, predicted = _counted(found)
    names, examples = prepared.dataset.class_names, prepared.data.validation
    wrong = [index for index in np.argsort(-found.losses).tolist() if labels[index] != predicted[index]]
    return tuple(
        page.Mistake(
            picture=examples.picture(index) if hasattr(examples, "picture") else None,  # pyright: ignore[reportAttributeAccessIssue]
            text=examples.text(index) if hasattr(examples, "text") else None,  # pyright: ignore[reportAttributeAccessIssue]
            label=names[labels[index]],
            predicted=names[predicted[index]],
            loss=float(found.losses[index]),
            origin=examples.origin(index),  # pyright: ignore[reportAttributeAccessIssue]
        )
        for index in wrong[:WORST]
    )


def _counted(found: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predicted classes, without positions that do not count."""
    classes = found.outputs.reshape(*found.labels.shape, -1).argmax(-1).reshape(-1)
    labels = found.labels.reshape(-1)
    return labels[labels >= 0], classes[labels >= 0]
