"""A whole fine-tuning run, from the configuration to the files it leaves: what `onnxeqx train` calls."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator

import equinox as eqx
import filelock
import jax
import jax.numpy as jnp
import optax
import rich.console
from jaxtyping import PyTree

import onnxeqx

from .._errors import OutputExistsError
from .._head import find_head, output_shape, replace_head
from .._select import parameters
from .._weights import write_whole
from .checkpoint import Checkpoints
from .classifier import Classifier
from .config import TrainConfig
from .data import Data
from .datasets import Selection, open_dataset
from .devices import Devices
from .errors import ConfigError, HeadError
from .images import Preprocessing
from .interrupt import stopping_on_signals
from .loop import fit
from .losses import (
    cross_entropy,
    cross_entropy_from_probabilities,
    logits_of_probabilities,
    smoothed_cross_entropy,
)
from .report import History, Progress
from .state import TrainState, check_mask
from .step import Values

CONFIG, HISTORY, CHECKPOINTS, LOCK = "config.json", "history.jsonl", "checkpoints", ".lock"
WEIGHTS, FOLDER, ONNX, PREPROCESSING = "weights.safetensors", "model", "model.onnx", "preprocessing.json"


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run gave: the model of the best epoch, the whole history, and the folder with all files."""

    model: eqx.Module
    history: list[dict[str, float]]
    folder: pathlib.Path


def run(
    config: TrainConfig,
    *,
    resume: bool = False,
    force: bool = False,
    console: rich.console.Console | None = None,
) -> RunResult:
    """Fine-tunes an image classifier and writes the folder `config.output`.

    The folder holds `config.json` (resolved), `history.jsonl`, `checkpoints/best`, `checkpoints/last`, and in the end
    the model of the best epoch as `weights.safetensors`, `model/` (a converted folder), `model.onnx`, and
    `preprocessing.json` (normalisation and class names; also in the metadata of `model.onnx`).

    **Arguments:**

    - `config`: the options.
    - `resume`: go on from `checkpoints/last` of that folder; a run that has none yet starts from the beginning.
    - `force`: replace the run in that folder. Files that are not of a run stay. With `resume`, no effect.
    - `console`: where progress goes; by default the standard output.

    **Raises:** `OnnxeqxError`, as one sentence, on anything wrong with model, data, options or checkpoint;
    `OutputExistsError` if the folder is not empty; `TrainingInterrupted` after Ctrl-C.
    """
    console = console or rich.console.Console()
    folder = pathlib.Path(config.output)
    _check_folder(folder, resume=resume, force=force)
    task = _prepare(config)
    config, data = task.config, task.data
    console.print(task.summary, highlight=False, soft_wrap=True)

    schedule = config.schedule(config.epochs * data.steps)
    optimizer = config.optimizer(schedule)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone_in(folder))
        _open_folder(folder, config, clear=force and not resume)
        checkpoints = stack.enter_context(Checkpoints(folder / CHECKPOINTS))
        progress = stack.enter_context(Progress(console, data, epochs=config.epochs, done=checkpoints.latest()))
        history = History(folder / HISTORY, extra=lambda row: _columns(row, config, schedule, progress))
        stop = stack.enter_context(stopping_on_signals(checkpoints.save, console.print))
        fitted = fit(
            task.model,
            data,
            optimizer=optimizer,
            loss=task.loss,
            trainable=task.mask,
            epochs=config.epochs,
            devices=config.devices,
            validation_loss=task.validation_loss,
            stop=lambda: _is_patient_no_more(history.rows(), config.patience),
            restore=lambda state: history.rewind(checkpoints.restore(state)),
            callbacks=(progress, history, checkpoints, stop),
        )
        last = TrainState.create(fitted.model, optimizer, task.mask, metrics=("accuracy",))
        best = checkpoints.restore(last, "best").evaluated
        _export(best, folder, task)
    return RunResult(best, history.rows(), folder)


@dataclasses.dataclass(frozen=True)
class _Task:
    """All that `fit` needs; the configuration with every `None` resolved."""

    config: TrainConfig
    model: eqx.Module
    mask: PyTree
    loss: Values
    validation_loss: Values
    data: Data
    preprocess: Preprocessing
    class_names: tuple[str, ...]

    @property
    def summary(self) -> str:
        trained = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(self.model, self.mask)))
        return (
            f"{len(self.data.training):,} training and {len(self.data.validation):,} validation images, "
            f"{len(self.class_names)} classes; new head at {self.config.head}; {trained:,} parameters are trained"
        )


def _prepare(config: TrainConfig) -> _Task:
    """Opens model and data, and puts the new head in. Writes nothing, so that an error leaves nothing behind."""
    path = pathlib.Path(config.model)
    classifier = Classifier.of(path, config.image_size)
    size = (classifier.channels, classifier.height, classifier.width)
    mean, std = Preprocessing.unit_range(config.mean, config.std)
    preprocess = Preprocessing(classifier.height, classifier.width, classifier.channels, mean, std)
    selection = Selection(config.validation_share, config.limit, config.seed)
    dataset = open_dataset(config.data, preprocess, classes=config.classes, selection=selection)
    classes = len(dataset.class_names)

    model = onnxeqx.load(path, input_shapes=None if path.is_dir() else classifier.input_shapes)
    inputs = jax.ShapeDtypeStruct((2, *size), jnp.float32)
    head = find_head(model, inputs, head=config.head)
    model = replace_head(model, classes, key=jax.random.key(config.seed), head=head, inputs=inputs)
    if len(shape := output_shape(model, inputs)) == 3:
        raise HeadError(f"The model's output has shape {shape}; that of an image classifier is (batch, classes).")
    # `head` among the patterns stands for the head's key path.
    trainable = [f"{head}.*" if pattern == "head" else pattern for pattern in config.trainable]
    mask = parameters(model, trainable=trainable or None, freeze=list(config.freeze) or None)
    check_mask(mask)
    Devices.of(config.devices, config.batch_size)  # which refuses what cannot be
    validation_loss = cross_entropy_from_probabilities if classifier.from_probabilities else cross_entropy
    return _Task(
        dataclasses.replace(config, classes=classes, head=head),
        model,
        mask,
        _smoothed(config.smoothing, classifier.from_probabilities) if config.smoothing else validation_loss,
        validation_loss,
        Data(dataset.training, dataset.validation, config.batch_size, config.seed, config.workers),
        preprocess,
        dataset.class_names,
    )


def _columns(
    row: dict[str, float], config: TrainConfig, schedule: optax.Schedule, progress: Progress
) -> dict[str, float]:
    """What the history has beside losses and metrics; the learning rate is that of the epoch's last update."""
    update = max(int(row["step"]) // config.grad_accum_steps - 1, 0)
    return {
        "lr": float(jnp.asarray(schedule(update))),
        "images_per_second": round(progress.images_per_second(), 1),
    }


def _smoothed(smoothing: float, from_probabilities: bool) -> Values:
    loss = smoothed_cross_entropy(smoothing)
    if not from_probabilities:
        return loss
    return lambda outputs, labels: loss(logits_of_probabilities(outputs), labels)


def _is_patient_no_more(rows: list[dict[str, float]], patience: int | None) -> bool:
    """Whether the best validation accuracy is `patience` epochs old."""
    if patience is None or not rows:
        return False
    best = max(rows, key=lambda row: (row["val_accuracy"], -row["epoch"]))
    return rows[-1]["epoch"] - best["epoch"] >= patience


# --- the folder -------------------------------------------------------------------------------------------------------


def _check_folder(folder: pathlib.Path, *, resume: bool, force: bool) -> None:
    if resume or force or not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise OutputExistsError(
            f"The output folder {folder} is not empty: go on with its run by --resume, replace it by --force, "
            "or choose another --output."
        )


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Creates the folder, and keeps other processes out of it. A killed process leaves no lock behind."""
    lock = filelock.FileLock(folder / LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise ConfigError(
            f"Another process is training in {folder}: wait until it is done, or choose another --output."
        ) from None
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def _open_folder(folder: pathlib.Path, config: TrainConfig, *, clear: bool) -> None:
    try:
        if clear:  # what a run writes, and nothing else: --force with a wrong folder must not cost a user's files
            for name in (CONFIG, HISTORY, WEIGHTS, ONNX, PREPROCESSING):
                (folder / name).unlink(missing_ok=True)
            for name in (CHECKPOINTS, FOLDER):
                shutil.rmtree(folder / name, ignore_errors=True)
        config.write(folder / CONFIG)
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be written: {error.strerror}.") from error


def _export(model: eqx.Module, folder: pathlib.Path, task: _Task) -> None:
    description = json.dumps(dataclasses.asdict(task.preprocess) | {"class_names": task.class_names}, indent=2)
    write_whole(folder / PREPROCESSING, description + "\n")
    onnxeqx.save_weights(model, folder / WEIGHTS)
    onnxeqx.save(model, folder / FOLDER, force=True)
    onnxeqx.save_onnx(model, folder / ONNX, metadata={"onnxeqx.preprocessing": description})
