"""A whole fine-tuning run, from the configuration to the files it leaves: what `onnxeqx train` calls."""

import contextlib
import dataclasses
import json
import pathlib
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import onnx
import rich.console

import onnxeqx

from .._errors import OutputExistsError
from .._weights import parameters, whole_path, write_whole
from .checkpoint import Checkpoints
from .classifier import Classifier
from .config import TrainConfig
from .data import Data
from .datasets import Dataset, Selection, open_dataset
from .errors import HeadError
from .head import find_head, output_width, replace_head
from .images import Preprocessing
from .interrupt import stopping_on_signals
from .loop import fit
from .losses import accuracy, cross_entropy, cross_entropy_from_probabilities
from .optimizers import adamw, warmup_cosine
from .report import History, Progress
from .state import TrainState

CONFIG, HISTORY, CHECKPOINTS = "config.json", "history.jsonl", "checkpoints"
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
    - `force`: replace the run in that folder. Files that are not of a run stay.
    - `console`: where progress goes; by default the standard output.

    **Raises:** `OnnxeqxError`, as one sentence, on anything wrong with model, data, options or checkpoint;
    `OutputExistsError` if the folder is not empty; `TrainingInterrupted` after Ctrl-C.
    """
    console = console or rich.console.Console()
    folder = pathlib.Path(config.output)
    _check_folder(folder, resume=resume, force=force)
    model, dataset, preprocess, classifier, config = _prepare(config, console)
    data = Data(dataset.training, dataset.validation, config.batch_size, config.seed, config.workers)

    if force and not resume:
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder / CONFIG)

    total_steps, warmup_steps = config.epochs * data.steps, round(config.warmup_epochs * data.steps)
    schedule = warmup_cosine(config.lr, steps=total_steps, warmup_steps=warmup_steps)
    optimizer = adamw(schedule, weight_decay=config.weight_decay)
    history = History(folder / HISTORY, extra=lambda row: {"lr": float(schedule(row["step"]))})
    mask = _trained(model, config)

    with Checkpoints(folder / CHECKPOINTS) as checkpoints:

        def restore(state: TrainState) -> TrainState:
            state = checkpoints.restore(state)
            # Rows are written before checkpoints: a killed run may have one that the checkpoint does not know.
            history.truncate(epoch=int(state.epoch) if checkpoints.steps() else -1)
            return state

        _fit(model, data, config, classifier, mask, optimizer, checkpoints, history, restore, console)
        best = checkpoints.restore(TrainState.create(model, optimizer, mask, metrics=("accuracy",)), "best").model
    _export(best, folder, preprocess, dataset.class_names)
    return RunResult(best, history.rows(), folder)


def _prepare(
    config: TrainConfig, console: rich.console.Console
) -> tuple[eqx.Module, Dataset, Preprocessing, Classifier, TrainConfig]:
    """The model with its new head, the data, and the configuration with every `None` resolved."""
    classifier = Classifier.of(pathlib.Path(config.model), config.image_size)
    mean, std = Preprocessing.unit_range(config.mean, config.std)
    preprocess = Preprocessing(classifier.height, classifier.width, classifier.channels, mean, std)
    selection = Selection(config.validation_share, config.limit, config.seed)
    dataset = open_dataset(config.data, preprocess, classes=config.classes, selection=selection)
    classes = len(dataset.class_names)

    model = onnxeqx.load(config.model, input_shapes=classifier.input_shapes)
    inputs = jax.ShapeDtypeStruct((2, classifier.channels, classifier.height, classifier.width), jnp.float32)
    head = find_head(model, inputs, head=config.head)
    model = replace_head(model, head, classes, key=jax.random.key(config.seed))
    if (width := output_width(model, inputs)) != classes:
        raise HeadError(f"With {classes} classes at {head}, the output is still {width} wide; choose another --head.")
    console.print(
        f"{len(dataset.training)} training and {len(dataset.validation)} validation images, {classes} classes; "
        f"new head at {head}",
        highlight=False,
    )
    config = dataclasses.replace(config, classes=classes, head=head)
    return model, dataset, preprocess, classifier, config


def _trained(model: eqx.Module, config: TrainConfig):
    """The mask of what is trained; `head` among the patterns stands for the head's key path."""
    trainable = [f"{config.head}.*" if pattern == "head" else pattern for pattern in config.trainable]
    return parameters(model, trainable=trainable or None, freeze=list(config.freeze) or None)


def _fit(model, data, config, classifier, mask, optimizer, checkpoints, history, restore, console) -> None:
    progress = Progress(
        console,
        epochs=config.epochs,
        steps=data.steps,
        validation_steps=data.validation_steps,
        batch_size=config.batch_size,
        done=max(checkpoints.steps(), default=0),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(progress)
        stop = stack.enter_context(stopping_on_signals(checkpoints.save, console.print))
        fit(
            model,
            data,
            optimizer=optimizer,
            loss=cross_entropy_from_probabilities if classifier.from_probabilities else cross_entropy,
            metrics={"accuracy": accuracy},
            trainable=mask,
            epochs=config.epochs,
            restore=restore,
            callbacks=(progress, history, checkpoints, stop),
        )


# --- the folder -------------------------------------------------------------------------------------------------------


def _check_folder(folder: pathlib.Path, *, resume: bool, force: bool) -> None:
    if resume or force or not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise OutputExistsError(
            f"The output folder {folder} is not empty: go on with its run by --resume, replace it by --force, "
            "or choose another --output."
        )


def _clear(folder: pathlib.Path) -> None:
    """Removes what a run writes, and nothing else: `--force` with a wrong folder must not cost a user's files."""
    for name in (CONFIG, HISTORY, WEIGHTS, ONNX, PREPROCESSING):
        (folder / name).unlink(missing_ok=True)
    for name in (CHECKPOINTS, FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)


def _export(
    model: eqx.Module,
    folder: pathlib.Path,
    preprocess: Preprocessing,
    class_names: tuple[str, ...],
) -> None:
    description = json.dumps(dataclasses.asdict(preprocess) | {"class_names": class_names}, indent=2)
    write_whole(folder / PREPROCESSING, description + "\n")
    onnxeqx.save_weights(model, folder / WEIGHTS)
    onnxeqx.save(model, folder / FOLDER, force=True)
    with whole_path(folder / ONNX, force=True) as path:
        onnxeqx.save_onnx(model, path)
        proto = onnx.load(path, load_external_data=False)
        onnx.helper.set_model_props(
            proto, {entry.key: entry.value for entry in proto.metadata_props} | {"onnxeqx.preprocessing": description}
        )
        path.write_bytes(proto.SerializeToString())
