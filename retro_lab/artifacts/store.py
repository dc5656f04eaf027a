"""The artifact store: builds stages shard by shard, resumes interrupted builds, and reuses finished artifacts.

Layout of one artifact, `<root>/<stage>/<fingerprint>/`:

    00000/ 00001/ ...     finished shards: each was written to a temporary folder and renamed when complete
    manifest.json         written last; without it the artifact is unfinished

Every shard is built under a file lock, which the operating system releases when its holder dies. So any number of
processes can share the shards of a stage, and one that is killed does not block the others. Locks only save work: if
two processes build the same shard, both write the same bytes, and the first rename wins.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any

from retro_lab import console
from retro_lab.artifacts.disk import NO_WRITING, no_room, sync
from retro_lab.artifacts.dispatch import Dispatcher, Ranks
from retro_lab.artifacts.fingerprint import differences
from retro_lab.artifacts.manifest import MANIFEST_NAME, Manifest
from retro_lab.artifacts.shards import (
    LEFTOVER,
    POLL_SECONDS,
    RECORD_NAME,
    Shards,
    lock,
    pending,
    sealed_files,
    temporary_folder,
)
from retro_lab.artifacts.stage import Artifact, Stage, shard_name
from retro_lab.errors import ArtifactError

FINISH = "finish"
"""The part of an artifact that is locked while its manifest is written."""
FEW_CHANGES = 3
"""An artifact that differs from another of its stage in more ways than these does not count as its predecessor."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class ArtifactStore:
    """Artifacts in one root folder, found by what they were made from."""

    def __init__(self, root: Path, dispatcher: Dispatcher | None = None) -> None:
        """Use `root`, which the first build creates.

        Args:
            root: Folder of all artifacts.
            dispatcher: Who builds shards; by default this process, with all others that build the same.
        """
        self.root = root
        self.dispatcher: Dispatcher = dispatcher or Ranks()
        self._used: set[Path] = set()
        """Folders of the artifacts that this command asked for."""

    def find(self, stage: Stage) -> Artifact | None:
        """Return the finished artifact of `stage`, or None if there is none.

        Raises:
            ArtifactError: A file is missing or has another size than when it was built, or a small one has other bytes.
        """
        folder = self._folder(stage)
        if not (folder / MANIFEST_NAME).is_file():
            return None
        manifest = Manifest.read(folder)
        manifest.check_sizes(folder)
        manifest.check_small_files(folder)
        return Artifact(folder, manifest)

    def build(self, stage: Stage) -> Artifact:
        """Return the artifact of `stage`; build the shards that are missing.

        Raises:
            ArtifactError: The disk is full, the folder cannot be written or locked, or an existing artifact is damaged.
        """
        artifact = self.find(stage)
        folder = self._folder(stage)
        self._used.add(folder)
        if artifact is not None:
            console.status(stage.name, f"reusing {folder}")
            self._clear_leftovers(stage, artifact)
            return artifact
        with self._write_errors(stage):
            folder.mkdir(parents=True, exist_ok=True)
            console.status(stage.name, self._reason(stage))
            while artifact is None:
                self._build_shards(stage)
                artifact = self._finish(stage)
            return artifact

    def artifacts(self) -> list[Path]:
        """Return the folders of all artifacts, finished or not, sorted."""
        return sorted(path for path in self.root.glob("*/*") if path.is_dir() and not path.parent.name.startswith("."))

    def _folder(self, stage: Stage) -> Path:
        return self.root / stage.name / stage.fingerprint

    def _build_shards(self, stage: Stage) -> None:
        """Have the dispatcher build the shards that are not finished."""
        shards = Shards(self.root, stage)
        left = shards.pending()
        if not left:
            return
        whole = sum(shards.sizes)
        done = whole - sum(shards.sizes[shard] for shard in left)
        if len(left) < len(shards.sizes):
            finished = len(shards.sizes) - len(left)
            console.status(stage.name, f"resuming: {finished} of {len(shards.sizes)} shards are finished")
        with console.progress(stage.name, stage.unit, whole, done) as advance:
            self.dispatcher.build(shards, left, advance)

    def _finish(self, stage: Stage) -> Artifact | None:
        """Write the manifest, or wait until another process has written it; None if a shard must be built again."""
        folder = self._folder(stage)
        while (artifact := self.find(stage)) is None:
            with lock(self.root, stage, FINISH) as held:
                if held and MANIFEST_NAME not in os.listdir(folder):
                    return self._combine(stage)
            if not held:
                sleep(POLL_SECONDS)
        return artifact

    def _combine(self, stage: Stage) -> Artifact | None:
        """Finish the artifact from its shards; the caller holds the lock. None if a shard must be built again."""
        folder, numbers = self._folder(stage), range(len(stage.shard_sizes()))
        if pending(folder, numbers):
            return None  # the previous holder of the lock found them damaged
        shards = [folder / shard_name(shard) for shard in numbers]
        # The content of combined shards goes into new files, where damage could not be detected any more.
        records = {shard: _read_record(shard, thoroughly=stage.combines_shards) for shard in shards}
        damaged = [shard for shard, record in records.items() if record is None]
        if damaged:
            console.status(stage.name, f"{len(damaged)} finished shards were damaged and are built again")
            for shard in damaged:
                shutil.rmtree(shard)
            return None
        whole = {shard: record for shard, record in records.items() if record is not None}
        with temporary_folder(folder, "combined") as combined:
            facts = dict(stage.finish(shards, [record.facts for record in whole.values()], combined))
            files = sealed_files(combined)
            for name in files:
                (combined / name).replace(folder / name)
        if not stage.combines_shards:
            for shard, record in whole.items():
                files |= {f"{shard.name}/{name}": entry for name, entry in record.files.items()}
        sync(folder)
        manifest = Manifest(stage.recipe, facts, files)
        manifest.write(folder)
        _remove_leftovers(folder, manifest)
        return Artifact(folder, Manifest.read(folder))

    def _clear_leftovers(self, stage: Stage, artifact: Artifact) -> None:
        """Remove what is left of a process that was killed between writing the manifest and removing its shards."""
        if not _leftovers(artifact.folder, artifact.manifest):
            return
        with suppress(OSError), lock(self.root, stage, FINISH) as held:  # the folder may be read-only
            if held:
                _remove_leftovers(artifact.folder, artifact.manifest)

    def _reason(self, stage: Stage) -> str:
        """Say why the stage must be built: how it differs from the most similar finished artifact of the same stage.

        One that differs in more than `FEW_CHANGES` ways, such as one of another corpus, explains nothing.
        """
        others = []
        for path in self._folder(stage).parent.glob(f"*/{MANIFEST_NAME}"):
            if path.parent not in self._used:  # another split that this command reads too is no predecessor
                with suppress(ArtifactError, OSError):  # ignore other artifacts that are damaged
                    others.append(_changes(Manifest.read(path.parent).recipe, stage.recipe))
        reasons = min(others, key=len, default=[])
        return f"building, because {'; '.join(reasons)}" if 0 < len(reasons) <= FEW_CHANGES else "building"

    @contextmanager
    def _write_errors(self, stage: Stage) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            if trouble := no_room(error):
                raise ArtifactError(
                    f"{trouble} at {self._folder(stage)} while building {stage.name}; finished shards are kept: "
                    "make room, then run the same command again."
                ) from error
            if isinstance(error, OSError) and error.errno in NO_WRITING and self._concerns(error.filename):
                raise ArtifactError(
                    f"{error.filename or self.root} cannot be written; point paths.artifacts at a folder you may write."
                ) from error
            if isinstance(error, OSError) and error.errno in NO_LOCKS:
                raise ArtifactError(
                    f"The file system of {self.root} has no file locks ({error.strerror}); mount it with them, or "
                    "point paths.artifacts at one that has."
                ) from error
            raise

    def _concerns(self, filename: str | bytes | None) -> bool:
        """Return whether a file belongs to the store; an unreadable corpus, for example, does not."""
        if filename is None:
            return True
        path, root = Path(os.fsdecode(filename)).absolute(), self.root.absolute()
        return path.is_relative_to(root) or root.is_relative_to(path)


class FinishedArtifacts(ArtifactStore):
    """Artifacts that are only read: what is missing is refused, rather than built."""

    def __init__(self, root: Path, advice: str) -> None:
        """Read from `root`.

        Args:
            root: Folder of all artifacts.
            advice: What to do if one is missing: the second half of a sentence, without its period.
        """
        super().__init__(root)
        self._advice = advice

    def build(self, stage: Stage) -> Artifact:
        """Return the artifact of `stage`.

        Raises:
            ArtifactError: It is missing or damaged.
        """
        artifact = self.find(stage)
        if artifact is None:
            raise ArtifactError(f"{self.root} lacks the {stage.name} that this needs; {self._advice}.")
        return artifact


def _read_record(shard: Path, thoroughly: bool) -> Manifest | None:
    """Read the record of a finished shard; None if a file's size or, if `thoroughly`, any byte differs from it."""
    try:
        record = Manifest.read(shard, RECORD_NAME)
        record.check_sizes(shard)
    except (ArtifactError, OSError):
        return None
    return None if thoroughly and record.damaged_files(shard) else record


def _leftovers(folder: Path, manifest: Manifest) -> list[Path]:
    """Return what a build left in an artifact's folder that is not part of the artifact."""
    held = {name.partition("/")[0] for name in manifest.files}
    others = [path for path in folder.iterdir() if path.name not in held and LEFTOVER.fullmatch(path.name)]
    return others + [record for name in held if (record := folder / name / RECORD_NAME).is_file()]


def _remove_leftovers(folder: Path, manifest: Manifest) -> None:
    for path in _leftovers(folder, manifest):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say how two recipes of one stage differ."""
    code = ["the stage's code changed"] if old["version"] != new["version"] else []
    libraries = differences(old.get("libraries", {}), new["libraries"])
    inputs = [f"other {role}" for role, artifact in new["inputs"].items() if old["inputs"].get(role) != artifact]
    return [*code, *libraries, *inputs, *differences(old["settings"], new["settings"])]
