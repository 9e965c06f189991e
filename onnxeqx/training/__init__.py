"""Fine-tuning: `fit` and its parts, each a plain function or class that can be replaced; `run` is the whole of it."""

from .._append import append_head as append_head
from .._head import find_head as find_head, replace_head as replace_head
from .augment import Augmentation as Augmentation, Mixing as Mixing
from .checkpoint import Checkpoints as Checkpoints
from .config import TrainConfig as TrainConfig
from .data import Batch as Batch, Data as Data, hold_out as hold_out
from .datasets import Dataset as Dataset, Selection as Selection, open_dataset as open_dataset
from .devices import Devices as Devices
from .errors import (
    CheckpointError as CheckpointError,
    ConfigError as ConfigError,
    DivergedError as DivergedError,
    HeadError as HeadError,
)
from .export import export_run as export_run
from .finished import (
    best_model as best_model,
    evaluate_run as evaluate_run,
    restore_run as restore_run,
)
from .forward import WithTeacher as WithTeacher, call as call, embedded_pairs as embedded_pairs
from .image_arrays import ImageArrays as ImageArrays, Pixels as Pixels
from .images import ImageFiles as ImageFiles, Preprocessing as Preprocessing
from .interrupt import TrainingInterrupted as TrainingInterrupted, stopping_on_signals as stopping_on_signals
from .loop import (
    EpochDone as EpochDone,
    Event as Event,
    Fitted as Fitted,
    StepDone as StepDone,
    ValidationStep as ValidationStep,
    fit as fit,
    training as training,
)
from .losses import (
    absolute_error as absolute_error,
    accuracy as accuracy,
    binary_cross_entropy as binary_cross_entropy,
    class_weighted as class_weighted,
    contrastive as contrastive,
    cross_entropy as cross_entropy,
    cross_entropy_from_probabilities as cross_entropy_from_probabilities,
    distillation as distillation,
    exact_match as exact_match,
    huber as huber,
    label_accuracy as label_accuracy,
    logits_of_probabilities as logits_of_probabilities,
    retrieval as retrieval,
    smoothed_cross_entropy as smoothed_cross_entropy,
    smoothed_token_cross_entropy as smoothed_token_cross_entropy,
    squared_error as squared_error,
    token_accuracy as token_accuracy,
    token_cross_entropy as token_cross_entropy,
)
from .monitor import Monitor as Monitor
from .optimizers import (
    adamw as adamw,
    average_parameters as average_parameters,
    averaged as averaged,
    decays as decays,
    optimizer as optimizer,
    warmup_constant as warmup_constant,
    warmup_cosine as warmup_cosine,
    warmup_linear as warmup_linear,
)
from .precision import scale_loss as scale_loss
from .prepare import Prepared as Prepared, prepare as prepare
from .rates import (
    by_depth as by_depth,
    by_pattern as by_pattern,
    hold_until as hold_until,
    scale_rates as scale_rates,
)
from .registry import TrainingRegistry as TrainingRegistry, registry as registry
from .report import History as History, Progress as Progress, TensorBoard as TensorBoard, Timings as Timings
from .rows import Rows as Rows
from .run import RunResult as RunResult, run as run
from .state import TrainState as TrainState
from .statistics import (
    following_statistics as following_statistics,
    freeze_batch_norm as freeze_batch_norm,
    statistics_paths as statistics_paths,
    train_batch_norm as train_batch_norm,
)
from .step import (
    make_eval_step as make_eval_step,
    make_predict_step as make_predict_step,
    make_train_step as make_train_step,
)
from .tasks import Task as Task
from .trials import dry_run as dry_run, find_lr as find_lr, overfit_one_batch as overfit_one_batch
