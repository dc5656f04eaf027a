"""The folder that a run writes to and resumes from."""

import shutil
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

HYDRA_NOTES = ".hydra"


def run_folder() -> Path:
    """Return the folder of the job that Hydra is running: `hydra.run.dir`, or the cell's in a multirun."""
    return Path(HydraConfig.get().runtime.output_dir)


def remove_unused(folder: Path) -> None:
    """Remove the folder of a run that was refused if there is nothing in it but Hydra's notes on that run."""
    with suppress(OSError):  # that of the refusal itself is the one to tell
        if folder.resolve() == Path.cwd() or any(path.name != HYDRA_NOTES for path in folder.iterdir()):
            return
        shutil.rmtree(folder)
        parent = folder.parent
        if parent.resolve() != Path.cwd() and not any(parent.iterdir()):
            parent.rmdir()
