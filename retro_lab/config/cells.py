"""A cell of a sweep in a process of its own, where it has ranks of its own.

Lightning starts the other ranks of a training by running the command again: of a sweep, each of them would begin the
whole sweep, and what a cell leaves in environment and process groups would reach the next one. So a cell with several
ranks becomes a command of its own, `python -m retro_lab cell FILE`, which its ranks run as well.
"""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from retro_lab import console, ranks
from retro_lab.config.check import as_written
from retro_lab.config.frozen import freeze, thaw
from retro_lab.errors import ConfigurationError, PreemptedError
from retro_lab.runs.folder import FAILURE_NAME, RunFolder
from retro_lab.training.devices import devices_used

INTERRUPTED = 130


def has_own_ranks(config: DictConfig) -> bool:
    """Return whether Lightning would start processes for a cell, which no launcher has started already."""
    if ranks.current().world > 1 or not config.task.name.has_run_folder:
        return False
    trainer = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(trainer, dict)
    try:
        return devices_used({str(key): value for key, value in trainer.items()}) > 1
    except ConfigurationError:
        return False  # the task says what is wrong with it


def run_apart(config: DictConfig) -> None:
    """Run a cell in a process of its own, and wait for it. That process says what went wrong.

    Args:
        config: The cell's, without a `hydra` node.

    Raises:
        KeyboardInterrupt: The cell was interrupted.
        PreemptedError: The cell saved its state because a signal asked it to.
    """
    hydra_config = HydraConfig.get()
    folder = RunFolder(Path(hydra_config.runtime.output_dir), tuple(hydra_config.overrides.task), as_written(config))
    whole = config.copy()
    OmegaConf.set_struct(whole, False)
    with open_dict(whole):
        whole["hydra"] = hydra_config
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".yaml") as file:
        yaml.safe_dump(freeze(whole, folder.path), file, sort_keys=False, allow_unicode=True)
        file.flush()
        process = subprocess.Popen([sys.executable, "-m", "retro_lab", "cell", file.name])
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal interrupts both
            process.wait()
            raise
        except PreemptedError:  # a plain kill reaches this process alone
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if code == PreemptedError.exit_code:
        raise PreemptedError(f"Stopped in {folder.path}; the same command goes on from there.")
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code and not (folder.path / FAILURE_NAME).is_file():
        error = f"A process ended with exit code {code}, and did not say why."
        folder.note_failure(error)
        console.error(f"{folder.path}: {error}")


def read_cell(file: Path) -> DictConfig:
    """Return the cell's configuration, and tell Hydra what it would know of the cell."""
    return thaw(yaml.safe_load(file.read_text(encoding="utf-8")))
