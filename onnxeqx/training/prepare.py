"""From a configuration to what `fit` takes: data, model with its new head, masks, loss and metrics."""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import onnxeqx

from .._append import append_head
from .._errors import HeadError
from .._head import find_head, replace_head
from .._lora import adaptable_layers
from .._select import parameters
from .augment import of_main, of_mixed
from .config import TrainConfig
from .data import Data, DrawnExamples
from .datasets import Dataset, Selection, open_dataset
from .devices import Devices
from .errors import ConfigError
from .forward import Forward, WithTeacher, embedded_pairs, first_output
from .images import Preprocessing
from .losses import Values, class_weighted, contrastive, distillation
from .monitor import Monitor
from .precision import PRECISIONS
from .registry import registry
from .row_data import open_rows
from .signature import Kind, Signature
from .state import check_mask
from .statistics import freeze_batch_norm, train_batch_norm, with_statistics
from .tasks import LOSS_LABELS, Task, from_logits

APPENDED = ("classifier", *(f"classifier{number}" for number in range(2, 100)))
"""Key paths of a head that is put behind an encoder: the first that the model does not have."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that a run needs.

    - `config`: with every `None` resolved that model and data decide.
    - `task`: what is learnt.
    - `model`: with its new head, and all that is put in for training.
    - `head`: the key path of the new head, if there is one.
    - `mask`: what is trained, in the shape of the model.
    - `loss`, `validation_loss`, `metrics`, `forward`: as `fit` takes them.
    - `data`, `dataset`: what is trained on.
    - `monitor`: decides which epoch is best.
    - `kind`: what the network takes.
    """

    config: TrainConfig
    task: Task
    model: Any
    head: str | None
    mask: PyTree
    loss: Values
    validation_loss: Values
    metrics: Mapping[str, Values]
    forward: Forward
    data: Data
    dataset: Dataset
    monitor: Monitor
    kind: Kind

    @property
    def compute_dtype(self) -> Any:
        """What the step computes in; `None` for the dtypes of the parameters."""
        return PRECISIONS[self.config.precision]

    @property
    def summary(self) -> str:
        """What is about to happen, in a line."""
        counts = f"{len(self.data.training):,} training and {len(self.data.validation):,} validation {self.unit}"
        names = f", {len(self.dataset.class_names)} {'targets' if self.task.labels == 'numbers' else 'classes'}"
        head = f"; new head at {self.head}" if self.head else ""
        summary = f"{counts}{names if self.dataset.class_names else ''}{head}; {self.trained_parameters:,} parameters are trained"
        return summary + (
            f"; no training example is of {', '.join(self.absent_classes)}" if self.absent_classes else ""
        )

    @property
    def description(self) -> str:
        """What inputs need and what outputs mean, as JSON."""
        return json.dumps(
            {"task": self.task.name, **self.dataset.description, "class_names": self.dataset.class_names}, indent=2
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What the data of a run must have in common with that of the run when it is resumed."""
        counts = self.dataset.class_counts()
        facts: dict[str, Any] = {
            "training examples": len(self.data.training),
            "validation examples": len(self.data.validation),
        }
        return facts if counts is None else facts | {"examples of each class": counts.tolist()}

    @property
    def absent_classes(self) -> list[str]:
        """Classes that training does not show, the first ten."""
        counts = self.dataset.class_counts() if self.task.labels == "class" else None
        absent = [] if counts is None else np.flatnonzero(counts == 0).tolist()
        names = [self.dataset.class_names[index] for index in absent[:10]]
        return [*names, "…"] if len(absent) > 10 else names

    @property
    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(self.model, self.mask)))

    @property
    def unit(self) -> str:
        """What examples are."""
        return {"images": "images", "tokens": "texts", "table": "rows"}.get(self.kind, "examples")

    @property
    def speed_unit(self) -> tuple[str, int]:
        """What speed is counted in, and how many of it an example has: tokens, padding included, of texts."""
        if self.kind != "tokens":
            return self.unit, 1
        inputs, _ = self.data.training[0]
        parts = inputs.values() if self.task.labels == "pairs" else (inputs,)
        return "tokens", sum(np.size(jax.tree.leaves(part)[0]) for part in parts)

    @staticmethod
    def finished(model: Any) -> Any:
        """The model as it leaves training: low-rank updates merged, BatchNorm as stored."""
        return onnxeqx.merge_lora(freeze_batch_norm(model))


def prepare(config: TrainConfig, *, left: Mapping[str, Any] | None = None) -> Prepared:
    """Opens model and data. Writes nothing, so that an error leaves nothing behind.

    **Arguments:**

    - `config`: the options.
    - `left`: what an earlier run has left in its `preprocessing.json`: its classes and features are those of this data too.

    **Raises:** `OnnxeqxError`, as one sentence, on anything wrong with model, data or options.
    """
    known, path = registry(), pathlib.Path(config.model)
    name = config.task or "classification"
    if name not in known.tasks:
        raise ConfigError(f"--task is {name}, but must be one of {', '.join(known.tasks)}.")
    task, signature = known.tasks[name], Signature.of(path)
    size = signature.image_size(str(path), config.image_size) if signature.kind == "images" else None
    dataset = _open(config, signature, task, size, left or {})
    _check_features(config, signature, task)
    base, ends_in = _loaded(config, signature, task, size)
    inputs = signature.structs(2, size)
    config, head = dataclasses.replace(config, task=name), None
    if task.new_head and config.head != "keep":
        base, config, head = _with_head(base, config, signature, task, dataset, inputs)
    else:
        config = dataclasses.replace(config, head="keep")
        _check_width(base, config, task, dataset, inputs)
    ends_in = None if config.head == "append" else ends_in  # a new head gives logits
    model, mask = _adapted(base, config, head)
    loss, validation_loss, metrics = _functions(config, task, ends_in, dataset)
    forward: Forward = embedded_pairs if task.labels == "pairs" else first_output
    if task.labels == "teacher" or config.distill:
        forward = _teacher(config, signature, size)
        _refuse_other_outputs(forward, model, inputs, config)
        loss, validation_loss, metrics = _taught(config, task, loss, validation_loss, metrics)
    _check_run(config, dataset)
    monitor = config.eval_metric or next(iter(metrics), "loss")
    if monitor not in metrics and monitor != "loss":
        raise ConfigError(f"--eval-metric is {monitor}, but this run has {', '.join(['loss', *metrics])}.")
    return Prepared(
        dataclasses.replace(config, eval_metric=monitor),
        task,
        model,
        head,
        mask,
        of_mixed(loss) if config.mixing else loss,
        validation_loss,
        {name: of_main(metric) if config.mixing else metric for name, metric in metrics.items()},
        forward,
        Data(
            dataset.training,
            dataset.validation,
            config.batch_size,
            config.seed,
            config.workers,
            config.worker_processes,
            config.mixing or None,
            (jax.process_index(), jax.process_count()),
        ),
        dataset,
        Monitor(f"val_{monitor}", monitor not in known.smaller_is_better),
        signature.kind,
    )


# --- data -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """Two augmented views of each image, for contrastive learning (https://arxiv.org/abs/2002.05709)."""

    images: Any

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.drawn(index, np.random.default_rng(index))  # each time the same, for evaluation

    def drawn(self, index: int, random: np.random.Generator) -> tuple[Any, Any]:
        """Two views, and the number of the image."""
        assert isinstance(self.images, DrawnExamples)
        first, second = (self.images.drawn(index, random)[0] for _ in range(2))
        return {"first": first, "second": second}, index


def _open(
    config: TrainConfig,
    signature: Signature,
    task: Task,
    size: tuple[int, int, int] | None,
    left: Mapping[str, Any],
) -> Dataset:
    if size is None:
        return open_rows(config, signature, task, left)
    if task.labels in ("token classes", "next tokens", "masked tokens"):
        raise ConfigError(f"--task {task.name} is of tokens, but {config.model} takes images.")
    channels, height, width = size
    preprocess = Preprocessing(height, width, channels, *Preprocessing.unit_range(config.mean, config.std))
    dataset = open_dataset(
        config.data,
        preprocess,
        classes=config.classes if task.labels == "class" else None,
        selection=Selection(config.validation_share, config.limit, config.seed),
        augment=config.augmentation,
        labels=task.labels,
        sources=registry().datasets,
        columns=config.label_column,
        names=tuple(left.get("class_names", ())),
    )
    if task.labels != "pairs":
        return dataset
    validation: Any = dataset.validation
    seen = dataclasses.replace(validation, augment=config.augmentation)
    return dataclasses.replace(dataset, training=TwoViews(dataset.training), validation=TwoViews(seen), class_names=())


def _check_run(config: TrainConfig, dataset: Dataset) -> None:
    """Refuses what would fail, or do nothing, once the run has begun."""
    Devices.of(config.devices, config.batch_size)  # which refuses what cannot be
    steps = config.epochs * -(-len(dataset.training) // config.batch_size)
    if config.grad_accum_steps > steps:
        raise ConfigError(f"--grad-accum-steps is {config.grad_accum_steps}, but the whole run has {steps} batches.")
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError("--tensorboard needs tensorboardX: pip install 'onnxeqx[tensorboard]'.")


def _check_features(config: TrainConfig, signature: Signature, task: Task) -> None:
    """Refuses options that have no meaning for these inputs, rather than passing over them."""
    images = signature.kind == "images"
    if (config.mixing or config.augmentation) and not images:
        raise ConfigError(
            "--mixup, --cutmix, --crop-scale, --flip, --color-jitter and --rand-augment are of images, "
            "which this network does not take."
        )
    if config.mixing and task.labels == "pairs":
        raise ConfigError(f"--mixup and --cutmix blend labels, which --task {task.name} does not have.")
    if task.labels == "pairs" and images and not config.augmentation:
        raise ConfigError(
            f"--task {task.name} compares two augmented views of an image: give --crop-scale or --rand-augment."
        )
    if config.smoothing and task.smoothed is None:
        raise ConfigError(f"--smoothing is of classes; --task {task.name} has none.")
    if config.class_weights and task.labels != "class":
        raise ConfigError(f"--class-weights is of one class for each example; --task {task.name} has other labels.")
    if config.image_size and not images:
        raise ConfigError("--image-size is of images, which this network does not take.")
    if images and (config.standardize or config.feature_columns):
        raise ConfigError("--standardize and --feature-columns are of tables; this network takes images.")
    if config.teacher and not (config.distill or task.labels == "teacher"):
        raise ConfigError("--teacher goes with --distill SHARE, or with --task distillation.")
    if config.temperature and not (config.distill or task.labels in ("teacher", "pairs")):
        raise ConfigError("--temperature is of a teacher (--distill, --task distillation) or of --task contrastive.")
    if config.dropout_layers and not config.dropout:
        raise ConfigError("--dropout-layers goes with --dropout RATE.")


# --- the model --------------------------------------------------------------------------------------------------------


def _loaded(
    config: TrainConfig, signature: Signature, task: Task, size: tuple[int, int, int] | None
) -> tuple[Any, str | None]:
    """The pretrained network, and whether it ends in Softmax or Sigmoid. A wrong ending for the task is left out."""
    path = pathlib.Path(config.model)
    softmax = dict.fromkeys(("class", "token classes", "next tokens", "masked tokens"), "Softmax")
    wanted = {**softmax, "classes": "Sigmoid"}.get(task.labels)
    keeps = signature.ends_in in (None, wanted if config.head != "append" else None)
    model = onnxeqx.load(
        path,
        input_shapes=signature.input_shapes(size),
        outputs=None if keeps or signature.folder else [signature.logits],
        scan_layers=config.scan_layers,
        remat=config.remat,
    )
    if not keeps and signature.folder:
        model = onnxeqx.truncate(model, at=signature.logits)
    return model, signature.ends_in if keeps else None


def _with_head(
    model: Any, config: TrainConfig, signature: Signature, task: Task, dataset: Dataset, inputs: Sequence[Any]
) -> tuple[Any, TrainConfig, str]:
    """The model with its new head; the configuration that gives it again; and the head's key path."""
    width = config.classes or len(dataset.class_names)
    if width != len(dataset.class_names):
        raise ConfigError(
            f"--classes is {width}, but the data has {len(dataset.class_names)}: {', '.join(dataset.class_names[:10])}."
        )
    if width < 2 and task.labels == "class":
        raise ConfigError(f"--classes is {width}, but must be at least 2 for --task {task.name}.")
    key = jax.random.key(config.seed)
    if config.head == "append" or (config.head is None and _lacks_head(model, inputs, task)):
        fields = {path.split(".")[0] for path in onnxeqx.key_paths(model)}
        name = next(name for name in APPENDED if name not in fields)
        model = append_head(model, width, name=name, key=key, pool=task.labels != "token classes")
        return model, dataclasses.replace(config, classes=width, head="append"), name
    head = find_head(model, inputs, head=config.head)
    model = replace_head(model, width, key=key, head=head, inputs=inputs)
    rank = len(_first_shape(model, inputs))
    if (rank == 3) != (task.labels == "token classes"):
        raise HeadError(
            f"With the head at {head}, the model's output has {rank} axes, which does not suit --task {task.name}; "
            "--head append puts a new layer behind the model's first output."
        )
    return model, dataclasses.replace(config, classes=width, head=head), head


def _check_width(model: Any, config: TrainConfig, task: Task, dataset: Dataset, inputs: Sequence[Any]) -> None:
    """Refuses a head that is kept and is not for the classes, or numbers, of the data."""
    if task.labels not in ("class", "classes", "numbers", "token classes"):
        return
    shape, count = _first_shape(model, inputs), len(dataset.class_names)
    axis = 2 if task.labels == "token classes" else 1
    width = shape[axis] if len(shape) > axis else 1
    if width != count:
        kind = "targets" if task.labels == "numbers" else "classes"
        raise ConfigError(
            f"--head keep: the network gives {width} numbers, but the data has {count} {kind}; leave --head out for a new one, "
            "or say by --classes how many classes arrays have."
        )


def _first_shape(model: Any, inputs: Sequence[Any]) -> tuple[int, ...]:
    return eqx.filter_eval_shape(lambda: first_output(model, tuple(map(_zeros, inputs)))).shape


def _lacks_head(model: Any, inputs: Sequence[Any], task: Task) -> bool:
    """Whether an encoder's outputs are no logits of this task: several, or one for each position."""
    outputs = jax.tree.leaves(eqx.filter_eval_shape(model, *inputs))
    return len(outputs) > 1 or (outputs[0].ndim == 3) != (task.labels == "token classes")


def _adapted(model: Any, config: TrainConfig, head: str | None) -> tuple[Any, PyTree]:
    """The model with all that is put in for training, and what of it is trained."""

    def paths(patterns: Sequence[str]) -> list[str]:
        return [f"{head}.*" if head and pattern == "head" else pattern for pattern in patterns]

    if config.dropout:
        places = list(config.dropout_layers)
        if not places and head is None:
            raise ConfigError("--dropout is before the new head, which this run does not have; name --dropout-layers.")
        model = onnxeqx.insert_dropout(model, places or [str(head)], config.dropout, before=not places)
    trainable = paths(config.trainable)
    if config.lora:
        known = [
            path for path, layer in adaptable_layers(model).items() if path != head and getattr(layer, "groups", 1) == 1
        ]
        layers = list(config.lora_layers) or known
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        model = onnxeqx.lora(model, layers, rank=config.lora, alpha=config.lora_alpha, key=key)
        trainable = trainable or ["*.lora_*", *([f"{head}.*"] if head else [])]
    elif config.lora_layers or config.lora_alpha:
        raise ConfigError("--lora-layers and --lora-alpha go with --lora RANK.")
    if config.batch_norm == "train":
        model = train_batch_norm(model)
    mask = parameters(model, trainable=trainable or None, freeze=paths(config.freeze) or None)
    check_mask(mask)
    return model, with_statistics(mask, model)


# --- loss and metrics -------------------------------------------------------------------------------------------------


def _functions(
    config: TrainConfig, task: Task, ends_in: str | None, dataset: Dataset
) -> tuple[Values, Values, dict[str, Values]]:
    known = registry()
    if config.loss and config.loss not in known.losses:
        raise ConfigError(f"--loss is {config.loss}, but must be one of {', '.join(known.losses)}.")
    if unknown := [name for name in config.metrics if name not in known.metrics]:
        raise ConfigError(f"--metrics has {unknown[0]}, but must be of {', '.join(known.metrics)}.")
    if config.loss and task.labels not in LOSS_LABELS.get(config.loss, (task.labels,)):
        raise ConfigError(
            f"--loss is {config.loss}, which does not suit --task {task.name}; leave it out for the task's own."
        )
    plain = known.losses[config.loss] if config.loss else task.loss
    if config.smoothing and plain is not task.loss:
        raise ConfigError(f"--smoothing is of the loss of --task {task.name} itself; leave out --loss or --smoothing.")
    if task.labels == "pairs" and config.loss is None and config.temperature is not None:
        plain = contrastive(config.temperature)
    loss = task.smoothed(config.smoothing) if config.smoothing and task.smoothed else plain
    if config.class_weights:
        loss = class_weighted(loss, _class_weights(config.class_weights, dataset))
    metrics = {**task.metrics, **{name: known.metrics[name] for name in config.metrics}}
    return (
        from_logits(loss, ends_in),
        from_logits(plain, ends_in),
        {name: from_logits(metric, ends_in) if ends_in == "Sigmoid" else metric for name, metric in metrics.items()},
    )


def _class_weights(text: str, dataset: Dataset) -> list[float]:
    count = len(dataset.class_names)
    if text == "balanced":
        found = dataset.class_counts()
        if found is None:
            raise ConfigError("--class-weights balanced counts labels, which this data does not show; give numbers.")
        weights = 1 / np.maximum(found, 1)
        return np.where(found, weights, weights[found > 0].mean()).tolist()  # of no example, whatever leaves the mean
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != count or min(weights) < 0 or not sum(weights):
        raise ConfigError(
            f"--class-weights is {text}, but must be 'balanced' or {count} numbers with commas, 0 or above."
        )
    return weights


def _teacher(config: TrainConfig, signature: Signature, size: tuple[int, int, int] | None) -> WithTeacher:
    if signature.ends_in is not None:
        raise ConfigError(
            "Distillation compares logits, but this network ends in probabilities; export it without its last layer."
        )
    path = pathlib.Path(config.teacher or config.model)
    taught = Signature.of(path)
    shapes, outputs = taught.input_shapes(size), None if taught.folder else [taught.logits]
    return WithTeacher(onnxeqx.load(path, input_shapes=shapes, outputs=outputs))


def _refuse_other_outputs(forward: WithTeacher, model: Any, inputs: Sequence[Any], config: TrainConfig) -> None:
    student, teacher = (
        struct.shape for struct in eqx.filter_eval_shape(lambda: forward(model, tuple(map(_zeros, inputs))))
    )
    if student != teacher:
        raise ConfigError(
            f"The teacher {config.teacher or config.model} gives {teacher}, but the network {student}: choose a teacher of the "
            "same classes (--teacher), or --task distillation, which keeps the network's own."
        )


def _zeros(struct: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(struct.shape, struct.dtype)


def _taught(
    config: TrainConfig, task: Task, loss: Values, validation_loss: Values, metrics: Mapping[str, Values]
) -> tuple[Values, Values, dict[str, Values]]:
    """Loss and metrics of a pair of outputs: the network's and its teacher's."""
    share, temperature = 1.0 if task.labels == "teacher" else config.distill, config.temperature or 1.0

    def of_student(function: Values) -> Values:
        return lambda outputs, labels: function(outputs[0], labels)

    return (
        distillation(loss, share=share, temperature=temperature),
        distillation(validation_loss, share=share, temperature=temperature),
        {name: of_student(metric) for name, metric in metrics.items()},
    )
