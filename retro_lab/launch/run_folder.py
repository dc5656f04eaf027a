"""The folder that a run writes to and resumes from."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from retro_lab import console
from retro_lab.errors import RunInUseError

HYDRA_NOTES = ".hydra"
LOCK_NAME = ".lock"
UNUSED = (HYDRA_NOTES, LOCK_NAME)
"""What lies in a folder that no run has written anything to yet."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def run_folder() -> Path:
    """Return the folder of the job that Hydra is running: `hydra.run.dir`, or the cell's in a multirun."""
    return Path(HydraConfig.get().runtime.output_dir)


def note_configuration(config: DictConfig) -> None:
    """Note down, in the run's folder, what it is configured by: where Hydra would, but not before it is known to begin.

    A command that is refused, because its settings are not those of the run in its folder, leaves that run's notes.
    """
    if not console.is_main_process():
        return
    hydra = HydraConfig.get()
    notes = {"config": config, "overrides": hydra.overrides.task, "hydra": OmegaConf.create({"hydra": hydra})}
    folder = run_folder() / HYDRA_NOTES
    folder.mkdir(parents=True, exist_ok=True)
    for name, note in notes.items():
        OmegaConf.save(note, folder / f"{name}.yaml")


def remove_unused(folder: Path) -> None:
    """Remove the folder of a run that was refused if there is nothing in it but notes on that run."""
    with suppress(OSError):  # that of the refusal itself is the one to tell
        if folder.resolve() == Path.cwd() or any(path.name not in UNUSED for path in folder.iterdir()):
            return
        shutil.rmtree(folder)
        parent = folder.parent
        if parent.resolve() != Path.cwd() and not any(parent.iterdir()):
            parent.rmdir()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other commands from writing into a run folder meanwhile; a killed process leaves nothing that blocks.

    Rank 0 holds the lock for all ranks of its command.

    Raises:
        RunInUseError: Another command is training or evaluating there.
    """
    if not console.is_main_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise RunInUseError(
            f"Another command is training or evaluating in {folder} right now; wait until it has ended, or give this "
            "run a name of its own with name=NAME."
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        console.status("lock", f"{folder} has no file locks: see to it that no other command uses it meanwhile")
    try:
        yield
    finally:
        lock.release()
