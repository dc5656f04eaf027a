"""The folder that a run writes to and resumes from."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


def run_folder(config: DictConfig) -> Path:
    """Return the folder of the job that Hydra is running: `hydra.run.dir`, or the cell's in a multirun."""
    del config  # Hydra knows; the parameter keeps every task's helpers alike
    return Path(HydraConfig.get().runtime.output_dir)
