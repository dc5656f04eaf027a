"""Durable checkpoints: written atomically, the last two kept, and damage detected on reading.

A checkpoint is written under a temporary name, synced to disk and renamed. The old one becomes `previous.ckpt`, so one
of the two is whole at every moment. torch writes a zip archive with a CRC-32 of each entry but does not check it on
reading. Here every entry is checked first. A separate checksum file is not needed, which a crash could leave beside the
wrong checkpoint.

A sharded checkpoint (`retro_lab.training.sharded_checkpoints`) is a folder of the same name, and is treated alike.
"""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from retro_lab import console
from retro_lab.artifacts.disk import no_room, replacing, sync
from retro_lab.errors import ArtifactError
from retro_lab.training.sharded_checkpoints import CHECKSUMS_NAME, read_whole

CHECKPOINT = Path("checkpoints") / "last.ckpt"
PREVIOUS_NAME = "previous.ckpt"
DAMAGED_NAME = "damaged.ckpt"
TRAINING_STATE = {"global_step", "optimizer_states", "lr_schedulers", "loops", "callbacks"}


class DurableCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint reader and writer, without overwriting the only good checkpoint.

    Object-store URLs, which a user's own callback may pass, are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; writing `last.ckpt` keeps its predecessor as `previous.ckpt`.

        Raises:
            ArtifactError: The disk is full or the folder cannot be written; the old checkpoint is untouched.
        """
        if _is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, or the previous one if it is damaged; only tensors are unpickled.

        Raises:
            ArtifactError: Neither can be read.
        """
        if _is_remote(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_or_fall_back(
            Path(path), lambda found: checked_state(read_checkpoint(found, map_location or "cpu"), found)
        )


def resumable(folder: Path) -> Path | None:
    """Return the checkpoint that training in `folder` resumes from; if it is missing, its `previous.ckpt` exists."""
    last = folder / CHECKPOINT
    return last if last.exists() or last.with_name(PREVIOUS_NAME).exists() else None


def sealed_file(path: Path) -> Path | None:
    """Return the file that a checkpoint is known by, itself or the checksums of its parts; None if it is neither."""
    path = path / CHECKSUMS_NAME if path.is_dir() else path
    return path if path.is_file() else None


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint after checking that its entries are unchanged; unpickles only tensors.

    Raises:
        ArtifactError: The file is missing, damaged, or not a checkpoint.
    """
    try:
        state = read_whole(path) if path.is_dir() else _read_file(path, map_location)
        if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
            raise ValueError("it holds no weights")
    except FileNotFoundError as error:
        raise ArtifactError(f"There is no checkpoint {path}.") from error
    except MemoryError:
        raise
    except Exception as error:  # the zip and tensor readers can raise anything on arbitrary bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ArtifactError(f"{path} is not a whole checkpoint ({reason}).") from error
    return state


def _read_file(path: Path, map_location: Any) -> Any:
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"its entry {damaged} has changed")
    return torch.load(path, map_location=map_location, weights_only=True)


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint to `path` atomically; see the module docstring.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written; the old checkpoint is untouched.
    """
    temporary = aside(path)
    with explained(path), removed_after(temporary):
        clear(temporary)
        with replacing(path, temporary) as file:
            sink = _Sink(file)
            torch.save(checkpoint, sink)  # type: ignore[arg-type]
            if sink.error:
                raise sink.error
            file.flush()
            os.fsync(file.fileno())
            _retire(path)
        sync(path.parent)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename the folder of a sharded checkpoint, forced to the disk, to `path`, as `write_checkpoint` does a file."""
    _retire(path)
    temporary.rename(path)
    sync(path.parent)


def aside(path: Path) -> Path:
    """Return where a checkpoint is written before it is put in place; the same for what a killed process left."""
    return path.with_name(f".{path.name}.tmp")


def clear(path: Path) -> None:
    """Remove a file or a folder if there is one, and make the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


@contextmanager
def removed_after(temporary: Path) -> Iterator[None]:
    """Remove what a failure left at `temporary`."""
    try:
        yield
    finally:
        with suppress(OSError):
            clear(temporary)


def _retire(path: Path) -> None:
    """Make `last.ckpt` the previous checkpoint; of another name, make room for a file or a folder."""
    if path.name == CHECKPOINT.name and path.exists():
        previous = path.with_name(PREVIOUS_NAME)
        if previous.is_dir() or path.is_dir():  # neither is replaced in one step
            _remove(previous)
        path.replace(previous)
    elif path.is_dir():
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint in one step, so that no half of a folder takes its name."""
    removed = aside(path)
    clear(removed)
    if path.exists():
        path.rename(removed)
        clear(removed)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what an error means while a checkpoint is written to `path`.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        trouble = no_room(error)
        reason = f"{trouble} at {path}" if trouble else f"{path} cannot be written ({error.strerror})"
        advice = "make room" if trouble else "make it writable, or choose another folder with paths.outputs"
        raise ArtifactError(
            f"{reason} while writing a checkpoint; the last good one is kept: {advice}, then run the same command "
            "again."
        ) from error


def _is_remote(path: Any) -> bool:
    return "://" in str(path)


class _Sink:
    """A file that torch can write to; it keeps the original OSError, which torch would replace with its own error."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write `data`; after an error, drop it."""
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing: `write_checkpoint` flushes once everything is written."""


def read_or_fall_back(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Read a checkpoint, or, with a notice, `previous.ckpt` if `last.ckpt` is damaged.

    Raises:
        ArtifactError: Neither can be read.
    """
    previous = path.with_name(PREVIOUS_NAME)
    try:
        return read(path)
    except ArtifactError as error:
        if path.name != CHECKPOINT.name or not previous.exists():
            raise
        trouble = error
    try:
        state = read(previous)
    except ArtifactError as error:
        raise ArtifactError(
            f"{trouble} The previous one cannot be read either: {error} Delete {path.parent} to train from the start."
        ) from error
    console.status("resuming", f"from {previous}, of step {state['global_step']}: {trouble}")
    if console.is_main_process():
        with suppress(OSError):  # otherwise the next checkpoint would turn the damaged one into the previous one
            clear(path.with_name(DAMAGED_NAME))
            path.replace(path.with_name(DAMAGED_NAME))
    return state


def checked_state(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a checkpoint read from `path` if training can resume from it.

    Raises:
        ArtifactError: It holds weights alone.
    """
    if missing := TRAINING_STATE - state.keys():
        raise ArtifactError(f"{path} is not a training checkpoint ({', '.join(sorted(missing))} missing).")
    return state
