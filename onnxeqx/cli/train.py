"""`onnxeqx train`: fine-tune a pretrained image classifier on your own images."""

import dataclasses
import pathlib
import shlex
from typing import Annotated, Any

import rich.console
import typer

from .console import Debug, output as standard_output, reports_errors

_MODEL, _SCHEDULE, _IMAGES, _RUN = "What is trained", "Schedule", "Images", "The run"


@reports_errors
def train(
    context: typer.Context,
    model: Annotated[
        pathlib.Path | None,
        typer.Argument(
            metavar="MODEL", help="The pretrained network: an ONNX file or a converted folder.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder of images (folder/CLASS/*.png, or folder/train/CLASS/… with folder/val/CLASS/…), an "
            ".npz file (arrays x and y, optionally x_test and y_test), or the built-in data set: digits.",
            show_default=False,
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(help="Number of classes.", show_default="as in the data", rich_help_panel=_MODEL),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="Key path of the layer to replace by a new one for your classes.",
            show_default="the last layer as wide as the output",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    trainable: Annotated[
        list[str] | None,
        typer.Option(
            help="Train only parameters whose key path matches this pattern, such as 'features.1*'; 'head' stands for "
            "the new head. May be given several times.",
            show_default="everything",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="Do not train parameters whose key path matches this pattern. May be given several times.",
            show_default="nothing",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images.", show_default="5", rich_help_panel=_SCHEDULE)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a step.", show_default="32", rich_help_panel=_SCHEDULE)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate.",
            show_default="0.0005",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            help="Of the weights; biases and normalisation weights do not decay.",
            show_default="0.05",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None,
    warmup_epochs: Annotated[
        float | None,
        typer.Option(
            help="Epochs (fractions too) in which the learning rate rises.",
            show_default="0.5",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None,
    opt: Annotated[
        str | None,
        typer.Option(
            help="Optimiser of Optax: adamw, sgd, lion, lamb, …", show_default="adamw", rich_help_panel=_SCHEDULE
        ),
    ] = None,
    opt_args: Annotated[
        list[str] | None,
        typer.Option(
            help="An argument of the optimiser, such as momentum=0.9. May be given several times.",
            show_default="Optax's",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None,
    sched: Annotated[
        str | None,
        typer.Option(
            help="How the learning rate goes on after the warm-up: cosine, linear (both to zero) or constant.",
            show_default="cosine",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None,
    clip_grad: Annotated[
        float | None,
        typer.Option(help="Largest norm of all gradients together.", show_default="none", rich_help_panel=_SCHEDULE),
    ] = None,
    grad_accum_steps: Annotated[
        int | None,
        typer.Option(
            help="Batches whose gradients are averaged for one update.", show_default="1", rich_help_panel=_SCHEDULE
        ),
    ] = None,
    smoothing: Annotated[
        float | None,
        typer.Option(
            help="Share of each label that is spread over all classes.", show_default="0", rich_help_panel=_SCHEDULE
        ),
    ] = None,
    model_ema: Annotated[
        bool,
        typer.Option("--model-ema", help="Evaluate and keep an average of the weights.", rich_help_panel=_SCHEDULE),
    ] = False,
    model_ema_decay: Annotated[
        float | None, typer.Option(help="Of that average.", show_default="0.9998", rich_help_panel=_SCHEDULE)
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="End the run after so many epochs without a better accuracy.",
            show_default="never",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Images are resized to this height and width. Smaller is faster.",
            show_default="as the network declares",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Subtracted from the pixels, which lie between 0 and 1 (or, if a value is above 1, between 0 and "
            "255). One number, or one for each channel with commas.",
            show_default="0.485,0.456,0.406",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            help="Divides the pixels, in the same units.", show_default="0.229,0.224,0.225", rich_help_panel=_IMAGES
        ),
    ] = None,
    validation_share: Annotated[
        float | None,
        typer.Option(
            help="Share of each class that is held out, where the data has no validation part.",
            show_default="0.2",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Use at most so many training images, and so many validation images.",
            show_default="all",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that decode images.", show_default="2", rich_help_panel=_IMAGES)
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            help="Over how many of the local devices each batch is spread.", show_default="all", rich_help_panel=_RUN
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of the new head, the split and the shuffling: the same seed gives the same run.",
            show_default="0",
            rich_help_panel=_RUN,
        ),
    ] = None,
    config: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="A TOML file of options by these names (with _ for -), or the config.json of a run; what is given here as well "
            "counts.",
            show_default=False,
            rich_help_panel=_RUN,
        ),
    ] = None,
    output: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Folder for checkpoints, history and the fine-tuned model.",
            show_default="runs/MODEL",
            rich_help_panel=_RUN,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the interrupted run in --output; all other options come from there.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --output.", rich_help_panel=_RUN)] = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a pretrained image classifier on your own images.

    The network's classification head is replaced by one for your classes, and the network is trained, by default with AdamW
    (warm-up, then a cosine). Each epoch is evaluated on held-out images. Ctrl-C stops after the present step; --resume
    goes on from there, exactly.

    The output folder holds the best epoch as model.onnx, as a converted folder (model/) and as weights.safetensors;
    preprocessing.json (normalisation, class names), config.json, history.jsonl, and checkpoints/best and last.

    For example: onnxeqx train network.onnx --data digits --classes 10 --image-size 64 --epochs 3 --output runs/digits
    """
    options = {name: value for name, value in context.params.items() if name not in ("resume", "force", "debug")}
    given = {
        name: value
        for name, value in options.items()
        if value not in ([], ()) and not (value is None or value is False)
    }
    _run(given, resume=resume, force=force, console=standard_output())


def _run(given: dict[str, Any], *, resume: bool, force: bool, console: rich.console.Console) -> None:
    # Here, not above: `onnxeqx --help` must not wait for Grain and Orbax.
    from ..training.config import MAY_CHANGE, TrainConfig
    from ..training.errors import ConfigError
    from ..training.interrupt import TrainingInterrupted
    from ..training.run import CONFIG, run

    file = given.pop("config", None)
    values = _plain((TrainConfig.values(file) if file is not None else {}) | given)
    if resume and force:
        raise ConfigError("--resume goes on with the run in --output and --force replaces it: choose one.")
    if resume:
        if "output" not in values:
            raise ConfigError("--resume needs the folder of the run: --output FOLDER.")
        config = TrainConfig.read(pathlib.Path(values["output"]) / CONFIG)
        config.check_given(values)
        config = dataclasses.replace(config, **{name: values[name] for name in MAY_CHANGE if name in values})
    else:
        if missing := [name for name in ("model", "data") if name not in values]:
            raise ConfigError(
                f"Missing: {' and '.join({'model': 'MODEL.onnx', 'data': '--data'}[m] for m in missing)}."
            )
        config = TrainConfig.from_dict({"output": _default_output(values["model"]), **values})
    again = f"onnxeqx train --resume --output {shlex.quote(config.output)}"
    try:
        result = run(config, resume=resume, force=force, console=console)
    except TrainingInterrupted as stop:
        console.print(f"Stopped after step {stop.step}. To go on: {again}", highlight=False, soft_wrap=True)
        raise typer.Exit(128 + stop.signal_number) from None
    except KeyboardInterrupt:
        started = pathlib.Path(config.output, CONFIG).exists()
        hint = f" To go on from the last checkpoint: {again}" if started else ""
        console.print(f"Aborted.{hint}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    first, best = result.history[0]["val_accuracy"], max(row["val_accuracy"] for row in result.history)
    console.print(f"accuracy {first:.3f} → {best:.3f}; the fine-tuned model is in {result.folder}", highlight=False)


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    """Options as the configuration holds them: absolute paths, tuples of numbers."""
    values = dict(given)
    for name in ("model", "output"):
        if name in values:
            values[name] = str(pathlib.Path(values[name]).absolute())
    if "data" in values and pathlib.Path(values["data"]).exists():
        values["data"] = str(pathlib.Path(values["data"]).absolute())
    for name in ("mean", "std"):
        if isinstance(values.get(name), str):
            values[name] = _numbers(name, values[name])
    return values


def _numbers(name: str, text: str) -> tuple[float, ...]:
    from ..training.errors import ConfigError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--{name} must be numbers with commas between them, such as 0.5,0.5,0.5; not {text!r}."
        ) from None


def _default_output(model: str) -> str:
    return str(pathlib.Path("runs", pathlib.Path(model).stem).absolute())
