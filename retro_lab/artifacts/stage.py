"""The interface of a stage: a pure function from settings and input artifacts to files, cut into shards."""

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

from retro_lab.artifacts.fingerprint import fingerprint, library_version
from retro_lab.artifacts.manifest import MANIFEST_NAME, Manifest, damaged

Facts = TypeVar("Facts")

Advance = Callable[[int], None]
"""Called by a stage with the number of units (chunks, documents, ...) it has just done."""


@dataclass(frozen=True)
class Artifact:
    """A finished, read-only result of a stage."""

    folder: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        """Hash of all that the artifact was made from; the folder's name."""
        return self.folder.name

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage counted and measured while it built."""
        return self.manifest.facts

    def read_facts(self, kind: type[Facts]) -> Facts:
        """Return the facts as a dataclass; those that it has no field for are left out.

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
            ArtifactError: The file begins with something else than what says of what type and shape its array is.
        """
        path = (self.folder if shard is None else self.shard(shard)) / name
        try:
            array: np.memmap = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, TypeError, SyntaxError, OverflowError, EOFError, TokenError) as error:
            raise damaged(path, "it does not begin as an array does", self.folder) from error
        # The file's size is known to be right, so with a flipped bit in its shape or type something is left over.
        whole = array.offset + array.nbytes == path.stat().st_size
        if not (whole and array.dtype.isnative and array.dtype.kind in "fiu"):
            raise damaged(path, "its array is said to have another type or shape than it has", self.folder)
        return array


def shard_name(number: int) -> str:
    """Return the name of the folder of a shard."""
    return f"{number:05}"


class Stage(ABC):
    """One step of the data pipeline.

    A stage must be deterministic: building any shard twice gives the same bytes. It never sees temporary names; the
    store hands it an empty folder for each shard and moves what it wrote into place.
    """

    name: ClassVar[str]
    """Folder of the stage's artifacts, and what the user sees."""
    version: ClassVar[int] = 1
    """Raised whenever the code changes what it writes."""
    unit: ClassVar[str]
    """What `shard_sizes` counts, in the plural."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Everything besides the inputs that decides the output, as JSON-able values."""

    def inputs(self) -> Mapping[str, Artifact]:
        """Artifacts that the stage reads, by role."""
        return {}

    def libraries(self) -> Mapping[str, int]:
        """Modules of libraries that decide the output, each with how many parts of its version do."""
        return {}

    @abstractmethod
    def shard_sizes(self) -> Sequence[int]:
        """Units of work in each shard; the number of shards is the length."""

    def prepare(self) -> AbstractContextManager[Any]:
        """Hold what all shards need (a loaded model, say); entered only if there is a shard left to build."""
        return nullcontext()

    @abstractmethod
    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write the files of one shard into the empty `folder` and return facts about it as JSON-able values."""

    combines_shards: ClassVar[bool] = False
    """Whether `finish` writes files that take the place of the shards'."""

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Turn the shards' facts into the artifact's; a stage that combines shards writes its files into `folder`.

        Args:
            shards: Folders of the finished shards, in order.
            facts: What `write_shard` returned for each.
            folder: Empty folder for combined files.
        """
        return {}

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that decides the output; what the fingerprint is taken of."""
        return {
            "stage": self.name,
            "version": self.version,
            "libraries": {module: library_version(module, parts) for module, parts in self.libraries().items()},
            "settings": dict(self.settings()),
            "inputs": {role: artifact.fingerprint for role, artifact in self.inputs().items()},
        }

    @cached_property
    def fingerprint(self) -> str:
        """Name of the artifact this stage builds."""
        return fingerprint(self.recipe)
