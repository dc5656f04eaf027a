"""`task=report`: tables, figures and a page of a finished run or sweep, made again from its folder alone."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from retro_lab import console
from retro_lab.config.arguments import command
from retro_lab.errors import RetroLabError
from retro_lab.launch.run_folder import run_folder
from retro_lab.launch.sweep import print_sweep_report
from retro_lab.report.build import write_run_report
from retro_lab.report.records import load_run
from retro_lab.report.sweeps import is_sweep, load_sweep
from retro_lab.training.checkpoints import CHECKPOINT


def run(config: DictConfig) -> None:
    """Write the report into the run's folder, print its table and where the page is; rank 0 does.

    Raises:
        RetroLabError: Nothing is finished there; the message has the command that makes it.
        ArtifactError: A result is damaged, or the report cannot be written.
    """
    if not console.is_main_process():
        return
    folder = run_folder()
    if is_sweep(folder):
        if not load_sweep(folder).has_outcome:
            raise RetroLabError(f"Nothing to report in {folder}: no cell has finished. To run the sweep: {_command()}")
        print_sweep_report(folder)
        return
    found = load_run(folder)
    if not found.models:
        reason = f"training failed ({found.error})" if found.error else "no model is finished there"
        raise RetroLabError(f"Nothing to report in {folder}: {reason}. To train one: {_command()}")
    report = write_run_report(folder)
    console.output.print(report.table.to_rich())
    console.status("report", str(report.page))
    console.status("figures", str(report.page.parent / "figures"))
    folders = [folder / record.model for record in found.models]
    console.status("checkpoints", ", ".join(str(path / CHECKPOINT.parent) for path in folders))
    # Whichever loggers there were, each has left a folder.
    logs = (str(path / name) for path in folders for name in ("metrics", "wandb") if (path / name).is_dir())
    console.status("logs", ", ".join(logs) or "none")


def _command() -> str:
    """Return the command line of this run without its task, which is training when none is named."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return command([override for override in overrides if not override.startswith("task=")])
