"""Checkpoints that are there whole or not at all, the last two of them, each known as damaged if it is.

A checkpoint is written beside its place, forced to the disk and renamed. The one that stood there becomes
`previous.ckpt`, so at every moment one of the two is whole. What torch writes is a zip archive with a CRC-32 of each
entry, which torch itself does not look at when it reads: here all are compared first, so there is no second file with
a checksum that a crash could leave behind with another checkpoint's.
"""

import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from retro_lab import console
from retro_lab.artifacts.disk import no_room, replacing, sync
from retro_lab.errors import ArtifactError

CHECKPOINT = Path("checkpoints") / "last.ckpt"
PREVIOUS_NAME = "previous.ckpt"
DAMAGED_NAME = "damaged.ckpt"
TRAINING_STATE = {"global_step", "optimizer_states", "lr_schedulers", "loops", "callbacks"}


class DurableCheckpoints(TorchCheckpointIO):
    """Lightning's reader and writer of checkpoints, in place of one that overwrites the only good one.

    Addresses of object stores, which a user's own callback may have, are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; one named `last.ckpt` keeps the one before it as `previous.ckpt`.

        Raises:
            ArtifactError: The disk is full or the folder cannot be written; what stood there still stands.
        """
        if _is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, or the previous one where it is damaged; nothing but tensors is ever unpickled.

        Raises:
            ArtifactError: Neither can be read.
        """
        if _is_remote(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return _read_or_fall_back(Path(path), map_location or "cpu")


def resumable(folder: Path) -> Path | None:
    """Return the checkpoint that training in `folder` goes on from; if it is not there, the previous one is."""
    last = folder / CHECKPOINT
    return last if last.is_file() or last.with_name(PREVIOUS_NAME).is_file() else None


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of which every byte that counts is the one that was written; unpickles tensors alone.

    Raises:
        ArtifactError: It is not there, is damaged, or is something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"its entry {damaged} has changed")
        state = torch.load(path, map_location=map_location, weights_only=True)
        if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
            raise ValueError("it holds no weights")
    except FileNotFoundError as error:
        raise ArtifactError(f"There is no checkpoint {path}.") from error
    except MemoryError:
        raise
    except Exception as error:  # whatever zip archive and tensors make of bytes that may be anything
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ArtifactError(f"{path} is not a whole checkpoint ({reason}).") from error
    return state


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Put a checkpoint at `path` in one step; see the module.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written; what stood there still stands.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one name, so that a killed process's is overwritten
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, temporary) as file:
            sink = _Sink(file)
            torch.save(checkpoint, sink)  # type: ignore[arg-type]
            if sink.error:
                raise sink.error
            file.flush()
            os.fsync(file.fileno())
            if path.name == CHECKPOINT.name and path.is_file():
                path.replace(path.with_name(PREVIOUS_NAME))
        sync(path.parent)
    except OSError as error:
        trouble = no_room(error)
        reason = f"{trouble} at {path}" if trouble else f"{path} cannot be written ({error.strerror})"
        advice = "make room" if trouble else "make it writable, or choose another folder with paths.outputs"
        raise ArtifactError(
            f"{reason} while writing a checkpoint; the last good one is kept: {advice}, then run the same command "
            "again."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _is_remote(path: Any) -> bool:
    return "://" in str(path)


class _Sink:
    """A file that torch can write to, and that keeps the system's error, which torch would make another of."""

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
        """Do nothing: the writer flushes when all is written."""


def _read_or_fall_back(path: Path, map_location: Any) -> dict[str, Any]:
    previous = path.with_name(PREVIOUS_NAME)
    try:
        return _read_training_state(path, map_location)
    except ArtifactError as error:
        if path.name != CHECKPOINT.name or not previous.is_file():
            raise
        trouble = error
    try:
        state = _read_training_state(previous, map_location)
    except ArtifactError as error:
        raise ArtifactError(
            f"{trouble} The one before it is none either: {error} Delete {path.parent} to train from the start."
        ) from error
    console.status("resuming", f"from {previous}, of step {state['global_step']}: {trouble}")
    if console.is_main_process():
        with suppress(OSError):  # or the next checkpoint would make the damaged one the previous one
            path.replace(path.with_name(DAMAGED_NAME))
    return state


def _read_training_state(path: Path, map_location: Any) -> dict[str, Any]:
    """Read a checkpoint that training can go on from: one with more than weights."""
    state = read_checkpoint(path, map_location)
    if missing := TRAINING_STATE - state.keys():
        raise ArtifactError(f"{path} is not a checkpoint of a training ({', '.join(sorted(missing))} missing).")
    return state
