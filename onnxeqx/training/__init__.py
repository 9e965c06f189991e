"""Fine-tuning: `fit` and its parts, each a plain function or class that can be replaced; `run` is the whole of it."""

from .checkpoint import Checkpoints as Checkpoints
from .config import TrainConfig as TrainConfig
from .data import Batch as Batch
from .data import Data as Data
from .data import hold_out as hold_out
from .datasets import Dataset as Dataset
from .datasets import Selection as Selection
from .datasets import open_dataset as open_dataset
from .errors import (
    CheckpointError as CheckpointError,
)
from .errors import (
    ConfigError as ConfigError,
)
from .errors import (
    DivergedError as DivergedError,
)
from .errors import (
    HeadError as HeadError,
)
from .head import find_head as find_head
from .head import replace_head as replace_head
from .images import ImageArrays as ImageArrays
from .images import ImageFiles as ImageFiles
from .images import Preprocessing as Preprocessing
from .interrupt import TrainingInterrupted as TrainingInterrupted
from .interrupt import stopping_on_signals as stopping_on_signals
from .loop import (
    EpochDone as EpochDone,
)
from .loop import (
    Event as Event,
)
from .loop import (
    Fitted as Fitted,
)
from .loop import (
    StepDone as StepDone,
)
from .loop import (
    ValidationStep as ValidationStep,
)
from .loop import (
    fit as fit,
)
from .loop import (
    training as training,
)
from .losses import (
    accuracy as accuracy,
)
from .losses import (
    cross_entropy as cross_entropy,
)
from .losses import (
    cross_entropy_from_probabilities as cross_entropy_from_probabilities,
)
from .optimizers import adamw as adamw
from .optimizers import decays as decays
from .optimizers import warmup_cosine as warmup_cosine
from .report import History as History
from .report import Progress as Progress
from .run import RunResult as RunResult
from .run import run as run
from .state import TrainState as TrainState
from .step import make_eval_step as make_eval_step
from .step import make_train_step as make_train_step
