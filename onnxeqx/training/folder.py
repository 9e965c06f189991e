"""The folder of a run: its files by name, its lock, and errors of its disk."""

import contextlib
import errno
import pathlib
import re
import shutil
from collections.abc import Iterator

import filelock

from .._errors import OnnxeqxError, OutputExistsError
from .config import TrainConfig
from .errors import ConfigError

CONFIG, HISTORY, TIMINGS = "config.json", "history.jsonl", "timings.jsonl"
CHECKPOINTS, LOCK, EVENTS = "checkpoints", ".lock", "events"
WEIGHTS, FOLDER, ONNX, PREPROCESSING = "weights.safetensors", "model", "model.onnx", "preprocessing.json"
LORA, TOKENIZER = "lora.safetensors", "tokenizer.json"
RESULTS, CONFUSION, SCATTER, REPORT = "results.png", "confusion_matrix.png", "predictions.png", "report.html"

FILES = (CONFIG, HISTORY, TIMINGS, WEIGHTS, ONNX, PREPROCESSING, LORA, TOKENIZER, RESULTS, CONFUSION, SCATTER, REPORT)

_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def check_folder(folder: pathlib.Path, *, resume: bool, force: bool) -> None:
    """**Raises:** `OutputExistsError` if a new run would mix with what is there."""
    if resume or force or not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise OutputExistsError(
            f"The output folder {folder} is not empty: go on with its run by --resume, replace it by --force, "
            "or choose another --output."
        )


@contextlib.contextmanager
def alone_in(folder: pathlib.Path) -> Iterator[None]:
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


def open_folder(folder: pathlib.Path, config: TrainConfig, *, clear: bool) -> None:
    """Writes the configuration, and before that removes the run that is there if it is to be replaced.

    **Raises:** `ConfigError` if the folder cannot be written.
    """
    try:
        if clear:  # what a run writes, and nothing else: --force with a wrong folder must not cost a user's files
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            for name in (CHECKPOINTS, FOLDER, EVENTS):
                shutil.rmtree(folder / name, ignore_errors=True)
        config.write(folder / CONFIG)
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be written: {error.strerror}.") from error


@contextlib.contextmanager
def storage_errors(folder: pathlib.Path) -> Iterator[None]:
    """Says in a sentence that a disk is full, whichever library met it.

    **Raises:** `OnnxeqxError`.
    """
    try:
        yield
    except Exception as error:
        reason = _storage_reason(error)
        if reason is None:
            raise
        raise OnnxeqxError(
            f"{folder} cannot be written any more: {reason}. What was saved before is whole; make room, and go on with "
            f"onnxeqx train --resume --output {folder}."
        ) from error


def _storage_reason(error: BaseException | None) -> str | None:
    """What the system said, be it in an error number or, from TensorStore, in a text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _STORAGE:
            return error.strerror
        if found := re.search(
            r"No space left on device|File too large|Disk quota exceeded|Read-only file system", str(error)
        ):
            return found[0]
        error = error.__cause__ or error.__context__
    return None
