"""Fine-tuning: `fit` and its parts, each a plain function or class that can be replaced; `run` is the whole of it."""

from .._head import find_head as find_head, replace_head as replace_head
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
from .images import ImageArrays as ImageArrays, ImageFiles as ImageFiles, Preprocessing as Preprocessing
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
    accuracy as accuracy,
    cross_entropy as cross_entropy,
    cross_entropy_from_probabilities as cross_entropy_from_probabilities,
    logits_of_probabilities as logits_of_probabilities,
    smoothed_cross_entropy as smoothed_cross_entropy,
)
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
from .report import History as History, Progress as Progress
from .run import RunResult as RunResult, run as run
from .state import TrainState as TrainState
from .step import make_eval_step as make_eval_step, make_train_step as make_train_step
