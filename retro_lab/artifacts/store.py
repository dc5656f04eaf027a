"""The artifact store: builds stages shard by shard, resumes what was killed, reuses what stands.

Layout of one artifact, `<root>/<stage>/<fingerprint>/`:

    00000/ 00001/ ...     finished shards: each was written to a temporary folder and renamed when whole
    manifest.json         written last; without it the artifact is unfinished, whatever else is there

Every shard is built under a file lock, which the operating system drops when its holder dies. So any number of
processes that are given the same stage share its shards, and a killed one leaves nothing that blocks the next.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import sleep
from typing import Any

from filelock import FileLock, Timeout

from retro_lab import console
from retro_lab.artifacts.fingerprint import differences
from retro_lab.artifacts.manifest import MANIFEST_NAME, FileRecord, Manifest, write_json
from retro_lab.artifacts.stage import Artifact, Stage
from retro_lab.errors import ArtifactError

RECORD_NAME = "shard.json"
POLL_SECONDS = 0.5


class ArtifactStore:
    """Artifacts under one root folder, found by what they were made from."""

    def __init__(self, root: Path) -> None:
        """Use `root`, which is made at the first build."""
        self.root = root
        self._served: set[Path] = set()

    def find(self, stage: Stage) -> Artifact | None:
        """Return the finished artifact of `stage`, or None if it is not there.

        Raises:
            ArtifactError: It is there but a file is missing or has another size than when it was built.
        """
        folder = self._folder(stage)
        if not (folder / MANIFEST_NAME).is_file():
            return None
        manifest = Manifest.read(folder)
        manifest.check_sizes(folder)
        return Artifact(folder, manifest)

    def build(self, stage: Stage) -> Artifact:
        """Return the artifact of `stage`, building the shards that are not there yet.

        Raises:
            ArtifactError: The disk is full, the folder cannot be written, or what stands there is damaged.
        """
        artifact = self.find(stage)
        self._served.add(self._folder(stage))
        if artifact is not None:
            console.status(stage.name, f"reusing {artifact.folder}")
            return artifact
        with self._write_errors(stage):
            self._folder(stage).mkdir(parents=True, exist_ok=True)
            console.status(stage.name, self._reason(stage))
            self._build_shards(stage)
            return self._finish(stage)

    def artifacts(self) -> list[Path]:
        """Return the folders of all artifacts, finished or not, sorted."""
        return sorted(path for path in self.root.glob("*/*") if path.is_dir() and not path.parent.name.startswith("."))

    def _folder(self, stage: Stage) -> Path:
        return self.root / stage.name / stage.fingerprint

    def _lock(self, stage: Stage, part: str) -> FileLock:
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{stage.name}-{stage.fingerprint}-{part}")

    def _build_shards(self, stage: Stage) -> None:
        folder, sizes = self._folder(stage), stage.shard_sizes()
        pending = [shard for shard in range(len(sizes)) if not _shard_folder(folder, shard).is_dir()]
        if not pending:
            return
        done = sum(sizes) - sum(sizes[shard] for shard in pending)
        if len(pending) < len(sizes):
            console.status(stage.name, f"resuming: {len(sizes) - len(pending)} of {len(sizes)} shards are finished")
        with ExitStack() as stack:
            advance = stack.enter_context(console.progress(stage.name, stage.unit, sum(sizes), done))
            prepared = False
            while pending:
                waiting = []
                for shard in pending:
                    try:
                        with self._lock(stage, f"{shard:05}").acquire(blocking=False):
                            if _shard_folder(folder, shard).is_dir():  # another process was quicker
                                advance(sizes[shard])
                                continue
                            if not prepared:
                                stack.enter_context(stage.prepare())
                                prepared = True
                            _build_shard(stage, folder, shard, advance)
                    except Timeout:
                        waiting.append(shard)
                if waiting == pending:
                    sleep(POLL_SECONDS)
                pending = waiting

    def _finish(self, stage: Stage) -> Artifact:
        folder = self._folder(stage)
        with self._lock(stage, "finish"):
            artifact = self.find(stage)
            if artifact is not None:  # another process finished it while this one waited
                return artifact
            shards = [_shard_folder(folder, shard) for shard in range(len(stage.shard_sizes()))]
            records = [json.loads((shard / RECORD_NAME).read_text(encoding="utf-8")) for shard in shards]
            with _temporary_folder(folder, "combined") as combined:
                facts = dict(stage.finish(shards, [record["facts"] for record in records], combined))
                files = {path.name: FileRecord.of(path) for path in sorted(combined.iterdir())}
                for name in files:
                    _sync(combined / name)
                    (combined / name).replace(folder / name)
            if not stage.combines_shards:
                for shard, record in zip(shards, records, strict=True):
                    files |= {f"{shard.name}/{name}": FileRecord(**entry) for name, entry in record["files"].items()}
            Manifest(stage.recipe, facts, files).write(folder)
            for shard in shards:
                if stage.combines_shards:
                    shutil.rmtree(shard)
                else:
                    (shard / RECORD_NAME).unlink()
            return Artifact(folder, Manifest.read(folder))

    def _reason(self, stage: Stage) -> str:
        """Say why the stage has to be built, from the finished artifact of the same stage most like it."""
        others = []
        for path in self._folder(stage).parent.glob(f"*/{MANIFEST_NAME}"):
            if path.parent not in self._served:  # what this command uses too, another split say, is no predecessor
                old = Manifest.read(path.parent).recipe
                others.append(_changes(old, stage.recipe))
        reasons = min(others, key=len, default=[])
        if not reasons:
            return "building"
        return f"building, because {'; '.join(reasons[:3])}{'; ...' if len(reasons) > 3 else ''}"

    @contextmanager
    def _write_errors(self, stage: Stage) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            if _is_full_disk(error):
                raise ArtifactError(
                    f"The disk is full at {self._folder(stage)} while building {stage.name}; finished shards are kept: "
                    "make room, then run the same command again."
                ) from error
            if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise ArtifactError(
                    f"{error.filename or self.root} cannot be written; point paths.artifacts at a folder you may write."
                ) from error
            raise


def _is_full_disk(error: OSError | RuntimeError) -> bool:
    """Tell a full disk, or an exhausted quota, from what the libraries that write files make of it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # FAISS raises a RuntimeError with the system's words; NumPy, for an array that fitted in part, one of its own.
    text = str(error)
    return os.strerror(errno.ENOSPC) in text or bool(re.fullmatch(r"\d+ requested and \d+ written", text))


def _shard_folder(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05}"


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what tells two recipes of one stage apart."""
    code = ["the stage's code changed"] if old["version"] != new["version"] else []
    inputs = [f"other {role}" for role, artifact in new["inputs"].items() if old["inputs"].get(role) != artifact]
    return [*code, *inputs, *differences(old["settings"], new["settings"])]


def _build_shard(stage: Stage, folder: Path, shard: int, advance: console.Advance) -> None:
    """Build one shard in a temporary folder and rename it into place; the caller holds the shard's lock."""
    final = _shard_folder(folder, shard)
    with _temporary_folder(folder, final.name) as temporary:
        facts = dict(stage.write_shard(shard, temporary, advance))
        files = {path.name: FileRecord.of(path) for path in sorted(temporary.iterdir())}
        for name in files:
            _sync(temporary / name)
        write_json(
            temporary / RECORD_NAME,
            {"facts": facts, "files": {name: {"size": r.size, "sha256": r.sha256} for name, r in files.items()}},
        )
        temporary.rename(final)


@contextmanager
def _temporary_folder(folder: Path, name: str) -> Iterator[Path]:
    """Make an empty folder for work in progress, clearing what a killed process left; gone afterwards."""
    temporary = folder / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    """Force a file to the disk, so that a rename never outruns its content when the machine goes down."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
