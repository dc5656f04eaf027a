"""The files of a sharded checkpoint: a folder that all ranks write together and any number of ranks can read.

__R_N.distcp     weights and optimizer states of rank R, as torch's distributed checkpoint writes them
.metadata        which part of which tensor is where
rest.pt          everything that is not a tensor of the model or an optimizer: counters, schedule, callbacks
checksums.json   size and CRC-32 of each of these files; written last

Nothing but tensors is unpickled, except for `.metadata`, of which only torch's own descriptions of tensors are.
"""

import dataclasses
import enum
import json
import os
import pickle
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from retro_lab.artifacts.disk import sync

T = TypeVar("T")

CHECKSUMS_NAME, METADATA_NAME, REST_NAME = "checksums.json", ".metadata", "rest.pt"
WEIGHTS, OPTIMIZERS = "state_dict", "optimizer_states"
"""Where Lightning keeps them in a checkpoint, and the beginning of the names of their tensors here."""
READ_AT_ONCE = 2**24
HARMLESS = (("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"))
"""What descriptions of tensors are made of, besides dataclasses and enumerations of torch's own."""


def together(work: Callable[[], T]) -> T:
    """Do something on each rank, and raise on all of them what fails on one; otherwise the others would wait for it.

    Raises:
        Exception: The first rank's among those that were raised.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    errors: list[Exception | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    if first := next((raised for raised in errors if raised is not None), None):
        raise first
    return result  # type: ignore[return-value]


def write_shards(folder: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint to a new folder; all ranks call this together.

    Raises:
        OSError: A rank could not write; raised on all of them.
    """
    tensors, rest = _divide(checkpoint)
    rank = dist.get_rank()
    try:
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder))
    except CheckpointException as error:
        reasons = [reason for reason, _ in error.failures.values()]
        raise next((reason for reason in reasons if isinstance(reason, OSError)), reasons[0]) from error

    def rest_and_checksums() -> dict[str, list[int]]:
        names = [path.name for path in folder.glob(f"__{rank}_*")]
        if rank == 0:
            torch.save(rest, folder / REST_NAME)
            sync(folder / REST_NAME)
            names += [REST_NAME, METADATA_NAME]
        return {name: _checksum(folder / name) for name in names}

    mine = together(rest_and_checksums)
    everyones: list[dict[str, list[int]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)

    def seal() -> None:
        if rank == 0:
            path = folder / CHECKSUMS_NAME
            path.write_text(json.dumps({name: found for part in everyones for name, found in part.items()}))
            sync(path)
            sync(folder)

    together(seal)


def check_shards(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Compare files of a checkpoint with their checksums: every `parts`-th, from number `part` on.

    Raises:
        ValueError: A file is missing or has changed.
    """
    try:
        checksums = json.loads((folder / CHECKSUMS_NAME).read_text())
        names = sorted(checksums)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"its {CHECKSUMS_NAME} cannot be read") from error
    for name in names[part::parts]:
        path = folder / name
        if path.name != name or not path.is_file():
            raise ValueError(f"its file {name} is missing")
        if _checksum(path) != checksums[name]:
            raise ValueError(f"its file {name} has changed")


def read_rest(folder: Path) -> dict[str, Any]:
    """Read everything but the tensors of the model and of optimizers."""
    rest = torch.load(folder / REST_NAME, map_location="cpu", weights_only=True)
    if not isinstance(rest, dict):
        raise ValueError(f"its file {REST_NAME} holds something else")
    return rest


def read_whole(folder: Path) -> dict[str, Any]:
    """Read a checkpoint in one process, as it would be in a single file; the whole model must fit in memory.

    Raises:
        ValueError: It is damaged.
    """
    check_shards(folder)
    tensors = {name: torch.empty(found.size, dtype=found.properties.dtype) for name, found in _described(folder)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is the point
        dcp.load(tensors, storage_reader=_Reader(folder), no_dist=True)
    return _join(tensors, read_rest(folder))


def read_shards(folder: Path, like: Callable[[str], Tensor | None]) -> dict[str, Any]:
    """Read each rank's part of a checkpoint; all ranks call this together.

    Args:
        folder: Of the checkpoint.
        like: Returns for a name in `state_dict`, or `N/I` for parameter I of optimizer N, the sharded tensor that is
            to be read into, or one like it.

    Returns:
        The checkpoint, as it would be in a single file, its tensors sharded.
    """
    tensors: dict[str, Tensor] = {}
    for name, found in _described(folder):
        kind, _, key = name.partition("/")
        target = like(key) if kind == WEIGHTS else like(key.rpartition("/")[0])
        if target is None or target.shape != found.size:  # a step's number, for example
            tensors[name] = torch.empty(found.size, dtype=found.properties.dtype)
        else:
            tensors[name] = target if kind == WEIGHTS else torch.empty_like(target, dtype=found.properties.dtype)
    dcp.load(tensors, storage_reader=_Reader(folder))
    return _join(tensors, read_rest(folder))


def _divide(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of the model and of optimizers by name, and everything else."""
    tensors = {f"{WEIGHTS}/{name}": value for name, value in checkpoint[WEIGHTS].items()}
    optimizers = []
    for number, optimizer in enumerate(checkpoint.get(OPTIMIZERS, [])):
        others: dict[int, dict[str, Any]] = {}
        for parameter, state in optimizer["state"].items():
            others[parameter] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
            named = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            tensors |= {f"{OPTIMIZERS}/{number}/{parameter}/{key}": value for key, value in named.items()}
        optimizers.append(dict(optimizer) | {"state": others})
    rest = {key: value for key, value in checkpoint.items() if key != WEIGHTS}
    return tensors, rest | ({OPTIMIZERS: optimizers} if OPTIMIZERS in checkpoint else {})


def _join(tensors: Mapping[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """Undo `_divide`."""
    checkpoint: dict[str, Any] = rest | {WEIGHTS: {}}
    for name, value in tensors.items():
        kind, _, key = name.partition("/")
        if kind == WEIGHTS:
            checkpoint[WEIGHTS][key] = value
        else:
            number, parameter, entry = key.split("/")
            checkpoint[OPTIMIZERS][int(number)]["state"][int(parameter)][entry] = value
    return checkpoint


def _described(folder: Path) -> list[tuple[str, TensorStorageMetadata]]:
    """Return what there is to know about each tensor without reading it."""
    described = _Reader(folder).read_metadata().state_dict_metadata
    return [(name, found) for name, found in described.items() if isinstance(found, TensorStorageMetadata)]


def _checksum(path: Path) -> list[int]:
    """Return the size and the CRC-32 of a file, the checksum of the archives that torch writes single files in."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(READ_AT_ONCE):
            checksum = zlib.crc32(block, checksum)
        return [os.fstat(file.fileno()).st_size, checksum]


class _Reader(dcp.FileSystemReader):
    """torch's reader, which does not execute what a changed file might say."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the descriptions of the tensors."""
        with (Path(self.path) / METADATA_NAME).open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise ValueError(f"its file {METADATA_NAME} holds something else")
        return metadata


class _Unpickler(pickle.Unpickler):
    """Unpickles descriptions of tensors alone."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of torch's metadata.

        Raises:
            ValueError: The file asks for something else.
        """
        found = super().find_class(module, name) if module.partition(".")[0] in ("torch", "pathlib") else None
        if isinstance(found, type):
            of_metadata = module.startswith("torch.distributed.checkpoint.")
            if of_metadata and (dataclasses.is_dataclass(found) or issubclass(found, enum.Enum)):
                return found
        if isinstance(found, torch.dtype) or (module, name) in HARMLESS:
            return found
        raise ValueError(f"its file {METADATA_NAME} holds {module}.{name}")
