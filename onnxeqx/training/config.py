"""One flat dataclass holds every option of a training run; its resolved values are saved beside the run."""

import dataclasses
import json
import pathlib
import re
import tomllib
import typing
from typing import Any, Self

import optax

from .._weights import write_whole
from .augment import Augmentation, Mixing
from .errors import ConfigError
from .optimizers import SCHEDULES, optimizer
from .options import DATA, MODEL, REGULARISATION, RUN, SCHEDULE, cast, option, option_name, require
from .precision import PRECISIONS, scale_loss
from .rates import by_depth, by_pattern, hold_until, scale_rates

# What a run that goes on may be given anew: it changes no result, but for rounding.
MAY_CHANGE = ("devices", "workers", "worker_processes", "tensorboard", "checkpoint_steps")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Every option of `onnxeqx train`, by the name it has there; `onnxeqx train --help` shows what each is for.

    Only `model`, `data` and `output` are required. An option of which a run makes use differently from what was given
    (`classes`, `head`, `task`, …: `None` asks the model and the data) has its resolved value in the run's `config.json`.

    **Raises:** `ConfigError` if a value is outside its range.
    """

    model: str = option("The pretrained network: an ONNX file or a converted folder.", panel=MODEL)
    data: str = option(
        "What to train on. Images: a folder (folder/CLASS/*.png, or folder/train/CLASS/… with folder/val/CLASS/…), an .npz "
        "file, a folder of .npy files or ArrayRecord (arrays x and y, optionally x_test and y_test), or the built-in digits. "
        "Tables and texts: .csv, .tsv, .parquet or .jsonl, a folder with train.* and val.* of these, or one that Hugging "
        "Face datasets saved; of images too, with a column image of file names. Language models: .txt too. Plugins add names.",
        panel=DATA,
    )
    output: str = option("Folder for checkpoints, history and the fine-tuned model.", panel=RUN, shown="runs/MODEL")
    task: str | None = option(
        "classification, multi-label, regression, token-classification, causal-lm, masked-lm, contrastive or distillation; or "
        "one that a plugin adds.",
        None,
        panel=MODEL,
        shown="classification",
    )
    loss: str | None = option(
        "cross-entropy (one class), binary-cross-entropy (multi-label), squared-error, absolute-error or huber (regression); or "
        "one that a plugin adds.",
        None,
        panel=MODEL,
        shown="the task's",
    )
    metrics: tuple[str, ...] = option(
        "A metric to report beside the task's: accuracy, absolute_error, …; or one that a plugin adds. May be given "
        "several times.",
        (),
        panel=MODEL,
    )
    classes: int | None = option("Number of classes.", None, panel=MODEL, shown="as in the data")
    head: str | None = option(
        "Key path of the layer to replace by a new one for your classes; 'append' puts one after the model's first output, "
        "'keep' keeps the old one.",
        None,
        panel=MODEL,
        shown="the last layer as wide as the output",
    )
    teacher: str | None = option(
        "Distillation: the ONNX file or folder whose outputs are learnt.", None, panel=MODEL, shown="MODEL as it is"
    )
    distill: float = option(
        "Share of the teacher's outputs in the loss, beside labels; --task distillation learns from them alone.",
        0.0,
        panel=MODEL,
        shown="0",
    )
    temperature: float | None = option(
        "Divides the logits in distillation, and the similarities in contrastive learning.",
        None,
        panel=MODEL,
        shown="1 for a teacher, 0.05 for pairs",
    )
    trainable: tuple[str, ...] = option(
        "Train only parameters whose key path matches this pattern, such as 'features.1*'; 'head' stands for the new head. "
        "May be given several times.",
        (),
        panel=MODEL,
        shown="everything",
    )
    freeze: tuple[str, ...] = option(
        "Do not train parameters whose key path matches this pattern. May be given several times.",
        (),
        panel=MODEL,
        shown="nothing",
    )
    unfreeze: tuple[str, ...] = option(
        "PATTERN=EPOCH: train these only after so many epochs, such as '*=1' beside 'head=0'. The last that fits counts.",
        (),
        panel=MODEL,
    )
    lora: int | None = option(
        "Rank of low-rank updates of linear layers and convolutions. They and the new head are trained; all else is frozen.",
        None,
        panel=MODEL,
    )
    lora_layers: tuple[str, ...] = option(
        "Key path of a layer that gets a low-rank update. May be given several times.",
        (),
        panel=MODEL,
        shown="all but the head and grouped convolutions",
    )
    lora_alpha: float | None = option("Updates are scaled by alpha / rank.", None, panel=MODEL, shown="the rank")
    batch_norm: str = option(
        "frozen: BatchNorm keeps its statistics; train: it normalises by the batch and its statistics follow.",
        "frozen",
        panel=MODEL,
    )
    dropout: float = option("Rate of dropout before the head, or after --dropout-layers.", 0.0, panel=REGULARISATION)
    dropout_layers: tuple[str, ...] = option(
        "Which layers' outputs are dropped, by key path. May be given several times.",
        (),
        panel=REGULARISATION,
        shown="before the head",
    )
    epochs: int = option("Passes over the training examples.", 5, panel=SCHEDULE)
    batch_size: int = option("Examples in a step.", 32, panel=SCHEDULE)
    lr: float = option("Peak learning rate.", 5e-4, panel=SCHEDULE)
    lr_scale: tuple[str, ...] = option(
        "PATTERN=FACTOR: another learning rate for these parameters, such as 'head=10'. May be given several times.",
        (),
        panel=SCHEDULE,
    )
    layer_decay: float | None = option(
        "Factor of the learning rate from each block to the one before, such as 0.75.", None, panel=SCHEDULE
    )
    weight_decay: float = option(
        "Of the weights; biases and normalisation weights do not decay. Optimisers without decoupled decay (sgd, adam) get it as "
        "L2 in the gradients, where 1e-4 is usual.",
        0.05,
        panel=REGULARISATION,
    )
    warmup_epochs: float = option("Epochs (fractions too) in which the learning rate rises.", 0.5, panel=SCHEDULE)
    opt: str = option("Optimiser of Optax: adamw, sgd, lion, lamb, …", "adamw", panel=SCHEDULE)
    opt_args: tuple[str, ...] = option(
        "An argument of the optimiser, such as momentum=0.9 or nesterov=true. May be given several times.",
        (),
        panel=SCHEDULE,
        shown="Optax's",
    )
    sched: str = option(
        "How the learning rate goes on after the warm-up: cosine, linear (both to zero) or constant.",
        "cosine",
        panel=SCHEDULE,
    )
    clip_grad: float | None = option("Largest norm of all gradients together.", None, panel=REGULARISATION)
    grad_accum_steps: int = option("Batches whose gradients are averaged for one update.", 1, panel=SCHEDULE)
    precision: str = option(
        "float32; bfloat16 or float16 compute in that, with float32 parameters (float16 with loss scaling).",
        "float32",
        panel=RUN,
    )
    smoothing: float = option("Share of each label that is spread over all classes.", 0.0, panel=REGULARISATION)
    class_weights: str | None = option(
        "'balanced' (rare classes count more), or one weight for each class, with commas.", None, panel=REGULARISATION
    )
    model_ema: bool = option("Evaluate and keep an average of the weights.", False, panel=REGULARISATION)
    model_ema_decay: float = option("Decay of the averaged weights in each update.", 0.9998, panel=REGULARISATION)
    eval_metric: str | None = option(
        "Metric of the validation part that decides which epoch is best, such as loss.",
        None,
        panel=RUN,
        shown="the task's",
    )
    patience: int | None = option(
        "End the run after so many epochs that are not better.", None, panel=SCHEDULE, shown="never"
    )
    image_size: int | None = option(
        "Images are resized to this height and width. Smaller is faster.",
        None,
        panel=DATA,
        shown="as the network declares",
    )
    mean: tuple[float, ...] = option(
        "Subtracted from the pixels, which lie between 0 and 1 (or, if a value is above 1, between 0 and 255). One number, or "
        "one for each channel with commas. Give both --mean and --std where one is above 1.",
        IMAGENET_MEAN,
        panel=DATA,
        shown="0.485,0.456,0.406",
    )
    std: tuple[float, ...] = option(
        "Divides the pixels, in the same units.", IMAGENET_STD, panel=DATA, shown="0.229,0.224,0.225"
    )
    crop_scale: float | None = option(
        "Train on random crops of at least this share of an image's area.", None, panel=REGULARISATION
    )
    flip: float = option("Probability of a horizontal flip.", 0.0, panel=REGULARISATION)
    color_jitter: float = option("Strength of random brightness, contrast and saturation.", 0.0, panel=REGULARISATION)
    rand_augment: tuple[int, ...] = option(
        "OPERATIONS,MAGNITUDE (0 to 10) of RandAugment, such as 2,9.", (), panel=REGULARISATION
    )
    mixup: float = option("Alpha of mixup: examples and labels are blended.", 0.0, panel=REGULARISATION)
    cutmix: float = option("Alpha of CutMix: a patch comes from another image.", 0.0, panel=REGULARISATION)
    text_column: str | None = option(
        "Column of texts; two, with a comma, for pairs. For token classification, of lists of words.",
        None,
        panel=DATA,
        shown="text, sentence, …; tokens or words",
    )
    label_column: str | None = option(
        "Column of labels; several, with commas, for regression and multi-label.",
        None,
        panel=DATA,
        shown="label, target, class, …; ner_tags or tags",
    )
    feature_columns: tuple[str, ...] = option(
        "Columns that a table's network takes, in its order, with commas.", (), panel=DATA, shown="all other numbers"
    )
    standardize: bool = option(
        "Subtract the mean of each feature of a table, and divide by its standard deviation.", False, panel=DATA
    )
    tokenizer: str | None = option("The tokenizer.json that belongs to the network.", None, panel=DATA)
    max_length: int = option("Tokens of a text; longer ones are cut, shorter ones padded.", 128, panel=DATA)
    mask_share: float = option("masked-lm: share of the tokens that is predicted.", 0.15, panel=DATA)
    validation_share: float = option(
        "Share of each class that is held out, where the data has no validation part.", 0.2, panel=DATA
    )
    limit: int | None = option(
        "Use at most so many training examples, and so many validation examples.", None, panel=DATA, shown="all"
    )
    workers: int = option("Threads that read examples ahead.", 2, panel=DATA)
    worker_processes: int = option(
        "Processes that read examples ahead, instead of threads; 0 for threads.", 0, panel=DATA
    )
    devices: int | None = option(
        "Over how many of the local devices each batch is spread.", None, panel=RUN, shown="all"
    )
    scan_layers: bool = option("Stack equal layers in a row, which compiles faster.", False, panel=RUN)
    remat: bool = option(
        "With --scan-layers: compute layers again in the backward pass, to save memory.", False, panel=RUN
    )
    checkpoint_steps: int | None = option(
        "Save a checkpoint after so many steps too, beside one after each epoch.", None, panel=RUN, shown="never"
    )
    keep_best: int = option("How many of the best epochs are kept as checkpoints.", 1, panel=RUN)
    tensorboard: bool = option("Write event files for TensorBoard too.", False, panel=RUN)
    seed: int = option(
        "Seed of the new head, the split, the shuffling, augmentation and dropout: the same seed gives the same run.",
        0,
        panel=RUN,
    )

    def __post_init__(self):
        at_least_one = (
            "epochs",
            "batch_size",
            "image_size",
            "limit",
            "workers",
            "grad_accum_steps",
            "patience",
            "devices",
        )
        for name in (*at_least_one, "lora", "max_length", "checkpoint_steps", "keep_best"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        require(self.classes is None or self.classes >= 1, "classes", self.classes, "at least 1")
        require(self.lr > 0, "lr", self.lr, "above 0")
        for name in ("clip_grad", "layer_decay", "lora_alpha", "temperature"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "above 0")
        for name in ("weight_decay", "seed", "worker_processes"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or above")
        require(
            0 <= self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs, "0 or above and below --epochs"
        )
        for name in ("validation_share", "model_ema_decay", "mask_share"):
            require(0 < getattr(self, name) < 1, name, getattr(self, name), "between 0 and 1")
        for name in ("smoothing", "dropout"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 or above and below 1")
        require(0 <= self.distill <= 1, "distill", self.distill, "between 0 and 1")
        require(min(self.std, default=0) > 0, "std", self.std, "one or more values above 0")
        require(len(self.mean) > 0, "mean", self.mean, "one or more values")
        self._check_units()
        require(self.sched in SCHEDULES, "sched", self.sched, f"one of {', '.join(SCHEDULES)}")
        require(self.precision in PRECISIONS, "precision", self.precision, f"one of {', '.join(PRECISIONS)}")
        require(self.batch_norm in ("frozen", "train"), "batch_norm", self.batch_norm, "frozen or train")
        require(len(self.rand_augment) in (0, 2), "rand_augment", self.rand_augment, "two numbers, such as 2,9")
        require(not self.remat or self.scan_layers, "remat", self.remat, "used together with --scan-layers")
        # These refuse what is out of range, or unknown.
        _ = self.augmentation, self.mixing, self.optimizer(self.lr)

    def _check_units(self) -> None:
        """A mean in units of 0 to 255 beside a deviation in units of 0 to 1 is a mistake."""
        for name, other in (("mean", "std"), ("std", "mean")):
            default = IMAGENET_STD if other == "std" else IMAGENET_MEAN
            if max(getattr(self, name)) > 1 and getattr(self, other) == default:
                raise ConfigError(
                    f"--{name} is {getattr(self, name)}, in units of 0 to 255, but --{other} is the default, in units of 0 to 1: "
                    "give both, such as --mean 127 --std 128."
                )

    @property
    def augmentation(self) -> Augmentation:
        """Random changes to training images."""
        count = self.rand_augment
        return Augmentation(self.crop_scale, self.flip, self.color_jitter, (count[0], count[1]) if count else None)

    @property
    def mixing(self) -> Mixing:
        """Mixup and CutMix."""
        return Mixing(self.mixup, self.cutmix)

    def numbers(self, name: str, head: str = "head") -> dict[str, float]:
        """An option of entries `PATTERN=NUMBER`, as a mapping; the pattern `head` is the key path of the head.

        **Raises:** `ConfigError` if an entry is of another form.
        """
        entries = {}
        for text in getattr(self, name):
            pattern, _, number = text.rpartition("=")
            if not pattern or not re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", number):
                raise ConfigError(
                    f"{option_name(name)} is {text!r}, but must be a pattern, = and a number, such as 'head=10'."
                )
            entries[head if pattern == "head" else pattern] = float(number)
        return entries

    def schedule(self, steps: int) -> optax.Schedule:
        """The learning rate by the number of updates, of a run of so many batches."""
        updates = max(steps // self.grad_accum_steps, 1)
        warmup = round(self.warmup_epochs / self.epochs * updates)
        return SCHEDULES[self.sched](self.lr, steps=updates, warmup_steps=warmup)

    def optimizer(
        self, learning_rate: optax.ScalarOrSchedule, *, epoch_updates: float = 1, head: str = "head"
    ) -> optax.GradientTransformation:
        """The optimiser with all that goes around it.

        **Arguments:**

        - `learning_rate`: a number or a schedule.
        - `epoch_updates`: how many updates an epoch has.
        - `head`: the key path that `head` stands for in patterns.

        **Raises:** `ConfigError` if there is no such optimiser, or it does not take its arguments.
        """
        arguments = dict(_argument(text) for text in self.opt_args)
        scales = [scale_rates(by_depth(self.layer_decay))] if self.layer_decay else []
        if factors := self.numbers("lr_scale", head):
            scales.append(scale_rates(by_pattern(factors)))
        held = self.numbers("unfreeze", head)
        hold = [hold_until({name: round(epochs * epoch_updates) for name, epochs in held.items()})] if held else []
        scaling = [scale_loss()] if self.precision == "float16" else []
        try:
            return optimizer(
                self.opt,
                learning_rate,
                weight_decay=self.weight_decay,
                clip_grad=self.clip_grad,
                accumulation_steps=self.grad_accum_steps,
                average_decay=self.model_ema_decay if self.model_ema else None,
                before=scaling,
                after=(*scales, *hold),
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
        return cls(**{name: cast(name, value, hints[name]) for name, value in values.items()})

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

        The folder is where it is now: runs may be moved.

        **Raises:** `ConfigError`, which lists each option with both values.
        """
        others = self.from_dict(dataclasses.asdict(self) | given)  # which refuses unknown names and other types
        differing = [
            f"{option_name(name)} is {getattr(self, name)} in the run and {getattr(others, name)} now"
            for name in given
            if name not in (*MAY_CHANGE, "output") and getattr(others, name) != getattr(self, name)
        ]
        if differing:
            raise ConfigError(
                f"The run in {self.output} cannot be resumed with other options: {'; '.join(differing)}. "
                "Leave them out, or start a new run with another --output."
            )


def _argument(text: str) -> tuple[str, Any]:
    """`momentum=0.9` as a name and a value, in TOML's or Python's spelling."""
    try:
        ((name, value),) = tomllib.loads(re.sub(r"(True|False)$", lambda found: found[0].lower(), text)).items()
    except ValueError:
        raise ConfigError(
            f"--opt-args {text!r} is not of the form name=value, such as momentum=0.9 or nesterov=true."
        ) from None
    return name, value
