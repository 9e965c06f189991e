"""One flat dataclass holds every option of a training run; its resolved values are saved beside the run."""

import dataclasses
import json
import pathlib
import tomllib
import types
import typing
from typing import Any, Self

import optax

from .._weights import write_whole
from .errors import ConfigError
from .optimizers import SCHEDULES, optimizer

# What a run that goes on may be given anew: it changes no result, but for rounding.
MAY_CHANGE = ("devices", "workers")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Every option of `onnxeqx train`, by the name it has there.

    **Arguments:**

    - `model`: the ONNX file, or a converted folder, to start from.
    - `data`: a folder of images, an `.npz` file, or the name of a built-in data set (`digits`).
    - `output`: the folder of the run.
    - `classes`: the number of classes; `None` takes it from the data.
    - `head`: key path of the layer to replace; `None` finds it.
    - `trainable`, `freeze`: key-path patterns of what is trained and of what is not (`freeze` wins). `"head"` in
      `trainable` stands for the replaced head.
    - `epochs`, `batch_size`, `lr`, `weight_decay`, `warmup_epochs`: of the optimiser and its schedule.
    - `opt`, `opt_args`: an optimiser of Optax by name, and more arguments of it, each as `name=value`.
    - `sched`: `cosine` or `linear` (to zero), or `constant`, after the warm-up.
    - `clip_grad`: the largest norm of all gradients together; `None` does not clip.
    - `grad_accum_steps`: batches whose gradients are averaged for one update.
    - `smoothing`: the share of each label that is spread over all classes.
    - `model_ema`, `model_ema_decay`: evaluate and keep an average of the weights.
    - `patience`: end the run after so many epochs without a better validation accuracy; `None` never does.
    - `image_size`: height and width of the network's input; `None` takes what the file declares.
    - `mean`, `std`: normalisation, one value or one for each channel: on pixels in [0, 1], or, if any value is above
      1, on pixels in [0, 255].
    - `validation_share`: held out where the data has no validation part of its own.
    - `limit`: at most so many training examples, and so many validation examples; `None` takes all.
    - `seed`: of the new head, of the split and of the shuffling. The same seed gives the same run.
    - `workers`: threads that decode images.
    - `devices`: of the local devices, over which each batch is spread; `None` takes all. A run may go on with another number.

    **Raises:** `ConfigError` if a value is outside its range.
    """

    model: str
    data: str
    output: str
    classes: int | None = None
    head: str | None = None
    trainable: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    epochs: int = 5
    batch_size: int = 32
    lr: float = 5e-4
    weight_decay: float = 0.05
    warmup_epochs: float = 0.5
    opt: str = "adamw"
    opt_args: tuple[str, ...] = ()
    sched: str = "cosine"
    clip_grad: float | None = None
    grad_accum_steps: int = 1
    smoothing: float = 0.0
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    patience: int | None = None
    image_size: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    validation_share: float = 0.2
    limit: int | None = None
    seed: int = 0
    workers: int = 2
    devices: int | None = None

    def __post_init__(self):
        for name in (
            "epochs",
            "batch_size",
            "image_size",
            "limit",
            "workers",
            "grad_accum_steps",
            "patience",
            "devices",
        ):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        _require(self.classes is None or self.classes >= 2, "classes", self.classes, "at least 2")
        _require(self.lr > 0, "lr", self.lr, "above 0")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or above")
        _require(
            0 <= self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs, "0 or above and below --epochs"
        )
        _require(0 < self.validation_share < 1, "validation_share", self.validation_share, "between 0 and 1")
        _require(self.seed >= 0, "seed", self.seed, "0 or above")
        _require(min(self.std, default=0) > 0, "std", self.std, "one or more values above 0")
        _require(self.sched in SCHEDULES, "sched", self.sched, f"one of {', '.join(SCHEDULES)}")
        _require(self.clip_grad is None or self.clip_grad > 0, "clip_grad", self.clip_grad, "above 0")
        _require(0 <= self.smoothing < 1, "smoothing", self.smoothing, "0 or above and below 1")
        _require(0 < self.model_ema_decay < 1, "model_ema_decay", self.model_ema_decay, "between 0 and 1")
        self.optimizer(self.lr)  # which refuses unknown names
        _require(len(self.mean) > 0, "mean", self.mean, "one or more values")

    def schedule(self, steps: int) -> optax.Schedule:
        """The learning rate by the number of updates, of a run of so many batches."""
        updates = max(steps // self.grad_accum_steps, 1)
        warmup = round(self.warmup_epochs / self.epochs * updates)
        return SCHEDULES[self.sched](self.lr, steps=updates, warmup_steps=warmup)

    def optimizer(self, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        """The optimiser with all that goes around it.

        **Raises:** `ConfigError` if there is no such optimiser, or it does not take its arguments.
        """
        arguments = dict(_argument(text) for text in self.opt_args)
        try:
            return optimizer(
                self.opt,
                learning_rate,
                weight_decay=self.weight_decay,
                clip_grad=self.clip_grad,
                accumulation_steps=self.grad_accum_steps,
                average_decay=self.model_ema_decay if self.model_ema else None,
                arguments=arguments,
            )
        except (TypeError, ValueError) as error:  # what Optax raises
            raise ConfigError(f"--opt-args does not suit optax.{self.opt}: {error}.") from error

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """A configuration from plain values, such as those of a JSON file; lists become tuples.

        **Raises:** `ConfigError` for an unknown or missing name, or a value of another type.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - fields.keys()):
            raise ConfigError(f"Unknown training option {', '.join(unknown)}; known are {', '.join(fields)}.")
        required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        if missing := sorted(required - values.keys()):
            raise ConfigError(f"The training configuration lacks {', '.join(missing)}.")
        hints = typing.get_type_hints(cls)
        return cls(**{name: _cast(name, value, hints[name]) for name, value in values.items()})

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        """The configuration that `write` saved.

        **Raises:** `ConfigError` if the file is missing or damaged.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ConfigError(f"There is no run to resume in {path.parent}: {path.name} is missing.") from None
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{path} is no training configuration: {error}.") from error

    @staticmethod
    def values(path: pathlib.Path) -> dict[str, Any]:
        """The options in a TOML file, or in the `config.json` of a run; options that it lacks have their defaults.

        **Raises:** `ConfigError` if it is missing, or is neither.
        """
        try:
            text = path.read_text(encoding="utf-8")
            values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except OSError as error:
            raise ConfigError(f"--config {path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise ConfigError(f"--config {path} is no TOML: {error}.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"--config {path} holds no options.")
        return values

    def write(self, path: pathlib.Path) -> None:
        """Writes the configuration as JSON, whole or not at all."""
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def check_given(self, given: dict[str, Any]) -> None:
        """Refuses options that differ from this configuration, that of a run to resume.

        **Raises:** `ConfigError`, which lists each option with both values.
        """
        hints = typing.get_type_hints(type(self))
        differing = [
            f"{_option(name)} is {getattr(self, name)} in the run and {value} now"
            for name, value in given.items()
            if name not in MAY_CHANGE and _cast(name, value, hints[name]) != getattr(self, name)
        ]
        if differing:
            raise ConfigError(
                f"The run in {self.output} cannot be resumed with other options: {'; '.join(differing)}. "
                "Leave them out, or start a new run with another --output."
            )


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{_option(name)} is {value}, but must be {expected}.")


def _argument(text: str) -> tuple[str, Any]:
    """`momentum=0.9` as a name and a value."""
    try:
        ((name, value),) = tomllib.loads(text).items()
    except ValueError:
        raise ConfigError(f"--opt-args {text!r} is not of the form name=value, such as momentum=0.9.") from None
    return name, value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _cast(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type: a list as a tuple, an integer as a float; nothing else is converted."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not type(None))
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_cast(name, item, typing.get_args(hint)[0]) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(hint, type) or not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        raise ConfigError(f"{_option(name)} cannot be {value!r}.")
    return value
