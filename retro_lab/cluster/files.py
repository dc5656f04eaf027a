"""What a job of a cluster leaves in its run folder, in `job/`.

submitted.yaml   the configuration, the command and the number of times that the job may be queued again
submission.json  the id that SLURM gave the job
state.json       what the job says of itself: waiting, running, done or failed; attempts; an error
outcome.json     how the ranks of an attempt ended: the first of them to say so counts
output.log       everything that all attempts printed
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from retro_lab.artifacts.disk import write_file
from retro_lab.artifacts.manifest import write_json
from retro_lab.console import visible
from retro_lab.errors import ArtifactError

Status = Literal["waiting", "running", "done", "failed"]
JOB_FOLDER = "job"
SUBMITTED_NAME = "submitted.yaml"


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What a job says of itself."""

    status: Status = "waiting"
    attempts: int = 0
    """How many times it has started."""
    job: str | None = None
    """Its id; None before the first attempt."""
    error: str | None = None


@dataclass(frozen=True)
class JobFiles:
    """The files of the job of one run folder."""

    run: Path

    @property
    def folder(self) -> Path:
        """The folder of these files."""
        return self.run / JOB_FOLDER

    @property
    def log(self) -> Path:
        """What the job printed."""
        return self.folder / "output.log"

    def submitted(self) -> dict[str, Any] | None:
        """Read what was submitted; None if nothing was.

        Raises:
            ArtifactError: The file is damaged.
        """
        path = self.folder / SUBMITTED_NAME
        if not path.is_file():
            return None
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or not {"config", "command", "requeues"} <= content.keys():
                raise ValueError("it is not what `retro-lab submit` writes")
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}); delete it and submit the run again.") from error
        return content

    def submit(self, content: Mapping[str, Any]) -> None:
        """Write down what is about to be submitted, and forget how an earlier job of this folder ended.

        Raises:
            ArtifactError: The folder cannot be written.
        """
        for path in (self._state, self._submission, self._outcome):
            path.unlink(missing_ok=True)
        text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
        write_file(self.folder / SUBMITTED_NAME, text.encode("utf-8"))

    def note_id(self, job: str) -> None:
        """Write down the id of the submitted job."""
        write_json(self._submission, {"job": job})

    @property
    def job(self) -> str | None:
        """The id of the last job; None if none was submitted."""
        return _read(self._submission).get("job") or self.state.job

    @property
    def state(self) -> JobState:
        """What the job said last."""
        content = _read(self._state)
        known = {key: content[key] for key in JobState.__dataclass_fields__ if key in content}
        return JobState(**known)

    def note_state(self, state: JobState) -> None:
        """Write down what the job says of itself."""
        write_json(self._state, asdict(state))

    def forget_outcome(self) -> None:
        """Remove the outcome of the attempt before."""
        self._outcome.unlink(missing_ok=True)

    def note_outcome(self, outcome: str, error: str | None = None, final: bool = False) -> None:
        """Write down how this rank ended, unless another one was first: later errors are often its consequences.

        Args:
            outcome: `done`, `preempted` or `failed`.
            error: What went wrong.
            final: Whether another attempt would fail in the same way.
        """
        own = self._outcome.with_name(f".{self._outcome.name}.{os.uname().nodename}.{os.getpid()}")
        write_json(own, {"outcome": outcome, "error": error, "final": final})
        with suppress(FileExistsError):
            os.link(own, self._outcome)
        own.unlink()

    @property
    def outcome(self) -> dict[str, Any]:
        """How the ranks of the last attempt ended; empty if none said so."""
        return _read(self._outcome)

    def last_words(self) -> str:
        """Return the last line that is not empty of what the job printed; empty if there is none."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))
            return last_line(file.read().decode("utf-8", errors="replace"))
        return ""

    @property
    def _state(self) -> Path:
        return self.folder / "state.json"

    @property
    def _submission(self) -> Path:
        return self.folder / "submission.json"

    @property
    def _outcome(self) -> Path:
        return self.folder / "outcome.json"


def last_line(text: str) -> str:
    """Return the last line that is not empty, safe to show; empty if there is none."""
    return visible(next((line.strip() for line in reversed(text.splitlines()) if line.strip()), ""))


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON file, which may not be there, or be gone by now."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}
