"""The interface of a stage: a pure function from settings and input artifacts to files, built shard by shard."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any, ClassVar, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from retro_lab.artifacts.fingerprint import differences, fingerprint, library_version
from retro_lab.artifacts.manifest import MANIFEST_NAME, Manifest, damaged
from retro_lab.errors import ArtifactError

Facts = TypeVar("Facts")

Advance = Callable[[int], None]
"""A stage calls it with the number of units (chunks, documents, ...) that it has just finished."""


@dataclass(frozen=True)
class Artifact:
    """A finished, read-only result of a stage."""

    folder: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the artifact was made from; the name of its folder."""
        return self.folder.name

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage counted and measured while it built."""
        return self.manifest.facts

    def read_facts(self, kind: type[Facts]) -> Facts:
        """Return the facts as a dataclass, without those that it has no field for.

        Raises:
            ArtifactError: A field is missing or has another type.
        """
        try:
            return TypeAdapter(kind).validate_python(self.facts)
        except ValidationError as error:
            raise damaged(self.folder / MANIFEST_NAME, f"it lacks facts of {kind.__name__}", self.folder) from error

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the stage was built with."""
        settings: dict[str, Any] = self.manifest.recipe["settings"]
        return settings

    @property
    def shards(self) -> int:
        """Number of shards whose files the artifact holds; 0 if its stage combines them."""
        names = {name.partition("/")[0] for name in self.manifest.files if "/" in name}
        return 1 + max(map(int, names), default=-1)

    def shard(self, number: int) -> Path:
        """Return the folder of a shard."""
        return self.folder / shard_name(number)

    def array(self, name: str, shard: int | None = None) -> np.ndarray:
        """Open the `.npy` file `name`, of a shard if one is given, as a read-only memory map, never unpickling.

        Raises:
            ArtifactError: The header of the file is damaged.
        """
        path = (self.folder if shard is None else self.shard(shard)) / name
        try:
            array: np.memmap = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, TypeError, SyntaxError, OverflowError, EOFError, TokenError) as error:
            raise damaged(path, "its header is not that of an array", self.folder) from error
        # The file's size was checked, so it contradicts a shape or type with a flipped bit.
        whole = array.offset + array.nbytes == path.stat().st_size
        if not (whole and array.dtype.isnative and array.dtype.kind in "fiu"):
            raise damaged(path, "its header states another type or shape than its array has", self.folder)
        return array


def shard_name(number: int) -> str:
    """Return the name of the folder of a shard."""
    return f"{number:05}"


class Stage(ABC):
    """One step of the data pipeline.

    A stage must be deterministic: building a shard twice gives the same bytes. It never sees temporary names: the store
    gives it an empty folder for each shard and moves the files into place.
    """

    name: ClassVar[str]
    """Name of the stage's folder, which the user also sees."""
    version: ClassVar[int] = 1
    """Raised whenever the code changes what it writes."""
    unit: ClassVar[str]
    """What `shard_sizes` counts, in the plural."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Return everything besides the inputs that decides the output, as JSON-able values."""

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the artifacts that the stage reads, by role."""
        return {}

    def libraries(self) -> Mapping[str, int]:
        """Return the modules of libraries that decide the output, and how many parts of each one's version matter."""
        return {}

    @abstractmethod
    def shard_sizes(self) -> Sequence[int]:
        """Return the units of work in each shard, one entry for each shard."""

    def prepare(self) -> AbstractContextManager[Any]:
        """Hold what all shards need, such as a loaded model; entered only if a shard is left to build."""
        return nullcontext()

    @abstractmethod
    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write the files of one shard into the empty `folder` and return facts about it as JSON-able values."""

    combines_shards: ClassVar[bool] = False
    """Whether `finish` writes files that replace those of the shards."""

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Return the facts of the artifact; a stage that combines shards also writes its files into `folder`.

        Args:
            shards: Folders of the finished shards, in order.
            facts: What `write_shard` returned for each.
            folder: Empty folder for combined files.
        """
        return {}

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides the output; the fingerprint is its hash."""
        return {
            "stage": self.name,
            "version": self.version,
            "libraries": self._installed(),
            "settings": dict(self.settings()),
            "inputs": {role: artifact.fingerprint for role, artifact in self.inputs().items()},
        }

    @cached_property
    def fingerprint(self) -> str:
        """Name of the artifact that this stage builds."""
        return fingerprint(self.recipe)

    def check_here(self) -> None:
        """Compare this process with the one that began to build, from which the stage came.

        Raises:
            ArtifactError: The code of the stage, or a library that decides its output, has another version here.
        """
        wanted = {"its code": self.recipe["version"], **self.recipe["libraries"]}
        if others := differences(wanted, {"its code": self.version, **self._installed()}):
            raise ArtifactError(
                f"{self.name} would be built with other versions on {os.uname().nodename} ({'; '.join(others)}); "
                "install the same ones on all machines."
            )

    def _installed(self) -> dict[str, str]:
        return {module: library_version(module, parts) for module, parts in self.libraries().items()}
