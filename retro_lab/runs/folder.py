"""The folder of a run: its layout, and the lock that keeps commands out of each other's way.

config.yaml              the overrides of the command and the settings they produce
baseline/, longer_baseline/, retro/
                         one folder for each model (`retro_lab.runs.trained_model`)
failed.json              {"error": ...}, present if the last attempt failed
report/                  tables, figures, a page; inspect/ has the pages of documents
"""

import errno
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from retro_lab import console
from retro_lab.artifacts.disk import write_file
from retro_lab.artifacts.manifest import write_json
from retro_lab.errors import RunInUseError

BASELINE, LONGER_BASELINE, RETRO = "baseline", "longer_baseline", "retro"
MODELS = (BASELINE, LONGER_BASELINE, RETRO)
"""Models of a run: the baseline was trained on RETRO's tokens, the longer one with RETRO's training FLOPs."""
CONFIG_NAME = "config.yaml"
FAILURE_NAME = "failed.json"
PROGRESS_NAME = "progress.json"
"""File in the folder of a model in training: its step and its tokens per second."""
LOCK_NAME = ".lock"
UNUSED = (CONFIG_NAME, LOCK_NAME)
"""Files in a folder that no run has written anything to yet."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def model_name(k: int) -> str:
    """Return the name of a model with k neighbors: the baseline is the RETRO that retrieves nothing."""
    return RETRO if k else BASELINE


@dataclass(frozen=True)
class RunFolder:
    """A folder that a run writes to and resumes from, with the overrides and settings of the command."""

    path: Path
    overrides: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The composed settings. Interpolations are kept unresolved, because their values can be secrets."""

    def model(self, name: str) -> Path:
        """Return the folder of a model, one of `MODELS`."""
        return self.path / name

    @property
    def command(self) -> str:
        """The command of this run without its task and that task's settings, so that the experiment's own task runs."""
        named = any(text.startswith("task=") for text in self.overrides)
        left_out = ("task=", "task.") if named else ()
        return shlex.join(
            ["python", "-m", "retro_lab", *(text for text in self.overrides if not text.startswith(left_out))]
        )

    def note(self) -> None:
        """Write down the run's configuration; call this only once the run is sure to begin.

        A command that is refused because its settings differ from those of the run in its folder must not overwrite
        that run's configuration.
        """
        if console.is_main_process():
            content = {"overrides": list(self.overrides), "settings": dict(self.settings)}
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            write_file(self.path / CONFIG_NAME, text.encode("utf-8"))

    def note_failure(self, error: str) -> None:
        """Write down why the run failed, for the table of its sweep, which identifies the cell by its overrides."""
        if not (self.path / CONFIG_NAME).is_file():
            self.note()
        write_json(self.path / FAILURE_NAME, {"error": error})

    def forget_failure(self) -> None:
        """Remove the failure of an earlier attempt."""
        (self.path / FAILURE_NAME).unlink(missing_ok=True)

    def remove_unused(self) -> None:
        """Remove the folder of a refused run if it holds nothing but that run's configuration and lock."""
        with suppress(OSError):  # the refusal itself is the error to report
            if self.path.resolve() == Path.cwd() or any(path.name not in UNUSED for path in self.path.iterdir()):
                return
            shutil.rmtree(self.path)
            parent = self.path.parent
            if parent.resolve() != Path.cwd() and not any(parent.iterdir()):
                parent.rmdir()

    def remove_empty(self) -> None:
        """Remove the folder if nothing was written to it, and then its parent."""
        with suppress(OSError):  # it holds something, and so stays
            self.path.rmdir()
            self.path.parent.rmdir()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder against other commands; a killed process releases its lock.

        Rank 0 holds the lock for all ranks of its command.

        Raises:
            RunInUseError: Another command is training or evaluating there.
        """
        if not console.is_main_process():
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK_NAME, fallback_to_soft=False)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise RunInUseError(
                f"Another command is training or evaluating in {self.path} right now; wait until it ends, or give this "
                "run its own name with name=NAME."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            console.status("lock", f"{self.path} does not support file locks: make sure that no other command uses it")
        try:
            yield
        finally:
            lock.release()


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's configuration: its `overrides` and its `settings`.

    Raises:
        ValueError: The file cannot be read, or is not a run's configuration.
    """
    path = folder / CONFIG_NAME
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("overrides"), list):
        raise ValueError(f"{path} is not the configuration of a run")
    return content
