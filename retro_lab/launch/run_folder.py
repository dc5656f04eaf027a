"""The folder that a run writes to and resumes from."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig


def run_folder() -> Path:
    """Return the folder of the job that Hydra is running: `hydra.run.dir`, or the cell's in a multirun."""
    return Path(HydraConfig.get().runtime.output_dir)
