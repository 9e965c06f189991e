"""`onnxeqx train`: fine-tune a pretrained network on your own data."""

import dataclasses
import inspect
import logging
import pathlib
import shlex
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import rich.console
import typer

from ..training.config import MAY_CHANGE, TrainConfig
from ..training.errors import ConfigError
from ..training.options import RUN
from .console import Debug, output as standard_output, reports_errors

_OWN = ("config", "amp", "resume", "force", "dry_run", "overfit_one_batch", "find_lr", "debug")


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `TrainConfig`, after what it has itself: one place says what there is."""
    own = inspect.signature(command).parameters
    context, *others = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for parameter in own.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    fields = [_parameter(field) for field in dataclasses.fields(TrainConfig)]
    # Typer reads the signature: https://docs.python.org/3/library/inspect.html#inspect.Signature
    vars(command)["__signature__"] = inspect.Signature([context, *fields, *others])
    return command


def _parameter(field: dataclasses.Field) -> inspect.Parameter:
    hint = typing.get_type_hints(TrainConfig)[field.name]
    if isinstance(hint, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not type(None))
    if field.name in _WITH_COMMAS:
        hint = str
    repeated = typing.get_origin(hint) is tuple
    # Typer reads Markdown.
    meta = {"help": field.metadata["help"].replace("*", r"\*"), "show_default": field.metadata["shown"] or False}
    if field.name == "model":
        info: Any = typer.Argument(metavar="MODEL", **meta)
    else:
        declared = ["--" + field.name.replace("_", "-")]
        info = typer.Option(*declared, rich_help_panel=field.metadata["panel"], **meta)
    kind = list[str] if repeated else hint
    default = False if hint is bool else None
    annotation = Annotated[kind if hint is bool else kind | None, info]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


# Tuples that are typed as one word.
_WITH_COMMAS = {"mean": float, "std": float, "rand_augment": int, "feature_columns": str}


@_with_options
@reports_errors
def train(
    context: typer.Context,
    config: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="A TOML file of options by these names (with _ for -), or the config.json of a run. Options on the command line "
            "override it.",
            show_default=False,
            rich_help_panel=RUN,
        ),
    ] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Short for --precision bfloat16.", rich_help_panel=RUN)] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the interrupted run in --output; all other options come from there.",
            rich_help_panel=RUN,
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --output.", rich_help_panel=RUN)] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Read all data, take one step, save one checkpoint elsewhere; keep nothing.",
            rich_help_panel=RUN,
        ),
    ] = False,
    overfit_one_batch: Annotated[
        bool,
        typer.Option(
            "--overfit-one-batch",
            help="Train on the first batch alone, which the network must learn by heart; keep nothing.",
            rich_help_panel=RUN,
        ),
    ] = False,
    find_lr: Annotated[
        bool,
        typer.Option(
            "--find-lr",
            help="Try rising learning rates for some steps, and suggest one; keep nothing.",
            rich_help_panel=RUN,
        ),
    ] = False,
    debug: Debug = False,
    **_: Any,
) -> None:
    """Fine-tune a pretrained network: of images, of texts or of tables.

    The network's head is replaced by one for your classes, and the network is trained, by default with AdamW
    (warm-up, then a cosine). Each epoch is evaluated on held-out examples. Ctrl-C stops after the present step; --resume
    goes on from there, exactly.

    The output folder holds the best epoch as model.onnx, as a converted folder (model/) and as weights.safetensors;
    preprocessing.json (what inputs need, class names), report.html, results.png, config.json, history.jsonl, and
    checkpoints/best and last.

    For example: onnxeqx train network.onnx --data digits --classes 10 --image-size 64 --epochs 3 --output runs/digits
    """
    del config
    given = {
        name: value
        for name, value in context.params.items()
        if value not in ([], ()) and not (value is None or value is False)
    }
    file = given.pop("config", None)
    if amp:
        given.setdefault("precision", "bfloat16")
    values = _plain(
        (TrainConfig.values(file) if file is not None else {}) | {k: v for k, v in given.items() if k not in _OWN}
    )
    if not debug:
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what Orbax logs with tracebacks, it raises as well
    console = standard_output()
    if sum((resume, force)) > 1:
        raise ConfigError("--resume goes on with the run in --output and --force replaces it: choose one.")
    trials = {"dry_run": dry_run, "overfit_one_batch": overfit_one_batch, "find_lr": find_lr}
    if resume and any(trials.values()):
        raise ConfigError(
            "--resume goes on with a run; --dry-run, --overfit-one-batch and --find-lr try before one: choose one."
        )
    if resume:
        _train(_resumed(values), resume=True, force=False, console=console)
        return
    if missing := [name for name in ("model", "data") if name not in values]:
        raise ConfigError(f"Missing: {' and '.join({'model': 'MODEL.onnx', 'data': '--data'}[m] for m in missing)}.")
    resolved = TrainConfig.from_dict({"output": _default_output(values["model"]), **values})
    if any(trials.values()):
        _try(resolved, [name for name, wanted in trials.items() if wanted], console)
    else:
        _train(resolved, resume=False, force=force, console=console)


def _train(config: TrainConfig, *, resume: bool, force: bool, console: rich.console.Console) -> None:
    # Here, not above: `onnxeqx --help` must not wait for what a run needs.
    from ..training.folder import CONFIG
    from ..training.interrupt import TrainingInterrupted
    from ..training.run import run

    again = f"onnxeqx train --resume --output {shlex.quote(config.output)}"
    try:
        result = run(config, resume=resume, force=force, console=console)
    except TrainingInterrupted as stop:
        console.print(
            f"Stopped after step {stop.step}. To go on: {again}", highlight=False, soft_wrap=True, markup=False
        )
        raise typer.Exit(128 + stop.signal_number) from None
    except KeyboardInterrupt:
        started = pathlib.Path(config.output, CONFIG).exists()
        hint = f" To go on from the last checkpoint: {again}" if started else ""
        console.print(f"Aborted.{hint}", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(130) from None
    name, first = result.monitor.removeprefix("val_").replace("_", " "), result.history[0][result.monitor]
    console.print(
        f"{name} {first:.3f} → {result.best:.3f}; the fine-tuned model is in {result.folder}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _try(config: TrainConfig, trials: list[str], console: rich.console.Console) -> None:
    from ..training import trials as functions

    for name in trials:
        getattr(functions, name)(config, console=console)


def _resumed(values: dict[str, Any]) -> TrainConfig:
    """The configuration of the run to go on with; what is given must not differ from it."""
    from ..training.folder import CONFIG

    if "output" not in values:
        raise ConfigError("--resume needs the folder of the run: --output FOLDER.")
    config = TrainConfig.read(pathlib.Path(values["output"]) / CONFIG)
    config.check_given(values)
    changed = {name: values[name] for name in (*MAY_CHANGE, "output") if name in values}
    return TrainConfig.from_dict(dataclasses.asdict(config) | changed)


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    """Options as the configuration holds them: absolute paths, tuples of what is typed with commas."""
    values = dict(given)
    for name in ("model", "output", "teacher", "tokenizer"):
        if values.get(name) is not None:
            values[name] = str(pathlib.Path(values[name]).absolute())
    if "data" in values and pathlib.Path(values["data"]).exists():
        values["data"] = str(pathlib.Path(values["data"]).absolute())
    for name, kind in _WITH_COMMAS.items():
        if isinstance(values.get(name), str):
            values[name] = _split(name, values[name], kind)
    return values


def _split(name: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        example = "0.5,0.5,0.5" if kind is float else "2,9"
        raise ConfigError(
            f"--{name.replace('_', '-')} must be numbers with commas between them, such as {example}; not {text!r}."
        ) from None


def _default_output(model: str) -> str:
    return str(pathlib.Path("runs", pathlib.Path(model).stem).absolute())
