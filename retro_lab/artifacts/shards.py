"""The shards of one stage: which are finished, and how a process builds one.

A shard is built under a file lock, in a temporary folder that is renamed when it is complete. Whoever decides which
process builds which shard (`retro_lab.artifacts.dispatch`) can therefore be wrong about it, or die, without harm.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from filelock import FileLock, Timeout

from retro_lab.artifacts.disk import sync
from retro_lab.artifacts.manifest import MANIFEST_NAME, FileRecord, Manifest
from retro_lab.artifacts.stage import Stage, shard_name
from retro_lab.console import Advance

RECORD_NAME = "shard.json"
LEFTOVER = re.compile(r"\d{5,}|\..*\.tmp")
"""Names of what a build keeps beside the artifact's own files: shards, temporary folders and files."""
POLL_SECONDS = 0.5
"""Time between two looks at what other processes have finished."""


class Shards:
    """The shards of a stage below the root of a store.

    It can be pickled for another process, together with its stage. As a context manager it closes what the stage
    prepared.
    """

    def __init__(self, root: Path, stage: Stage) -> None:
        """Nothing is prepared yet, and the folder must exist before anything is asked."""
        self.root = root
        self.stage = stage
        self.folder = root / stage.name / stage.fingerprint
        self.sizes = list(stage.shard_sizes())
        """Units of work in each shard."""
        self._prepared: ExitStack | None = None

    def pending(self, among: Iterable[int] | None = None) -> list[int]:
        """Return which shards, of all or of those in `among`, are not finished."""
        return pending(self.folder, range(len(self.sizes)) if among is None else among)

    def build_if_free(self, shard: int, advance: Advance) -> bool:
        """Build a shard unless it is finished or another process holds it; return whether it was built here."""
        with lock(self.root, self.stage, shard_name(shard)) as held:
            if not held or not self.pending([shard]):
                return False
            advance(0, "")
            if self._prepared is None:
                self._prepared = ExitStack()
                self._prepared.enter_context(self.stage.prepare())
            self._build(shard, advance)
            return True

    def __enter__(self) -> "Shards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._prepared is not None:
            self._prepared.__exit__(kind, error, trace)
            self._prepared = None

    def _build(self, shard: int, advance: Advance) -> None:
        """Build one shard in a temporary folder and rename it into place; the caller holds the shard's lock."""
        final = self.folder / shard_name(shard)
        with temporary_folder(self.folder, final.name) as temporary:
            facts = dict(self.stage.write_shard(shard, temporary, advance))
            Manifest({}, facts, sealed_files(temporary)).write(temporary, RECORD_NAME)
            sync(temporary)
            try:
                temporary.rename(final)
            except OSError:
                if not final.is_dir():  # if a lock was lost, another process may have been faster
                    raise


def pending(folder: Path, shards: Iterable[int]) -> list[int]:
    """Return which of `shards` are not finished; none if the artifact is, as its shards may have been removed.

    It lists the folder once: looking at each shard is slower and, on a network file system, can see an old state.
    """
    names = set(os.listdir(folder))
    return [] if MANIFEST_NAME in names else [shard for shard in shards if shard_name(shard) not in names]


@contextmanager
def lock(root: Path, stage: Stage, part: str) -> Iterator[bool]:
    """Try to lock a part of an artifact; yields whether it is held."""
    folder = root / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    # Without locks in the file system, a file that exists as long as the lock would outlive a holder that dies.
    held = FileLock(folder / f"{stage.name}-{stage.fingerprint}-{part}", fallback_to_soft=False)
    try:
        held.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()


@contextmanager
def temporary_folder(folder: Path, name: str) -> Iterator[Path]:
    """Create an empty folder for work in progress, and remove it afterwards, with any that a killed process left."""
    for abandoned in folder.glob(f".{name}.*.tmp"):
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = folder / f".{name}.{uuid4().hex[:8]}.tmp"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sealed_files(folder: Path) -> dict[str, FileRecord]:
    """Force the files in `folder` to the disk and measure them."""
    files = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        files[path.name] = FileRecord.of(path)
    return files
