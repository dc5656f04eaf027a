"""`task=report`: tables, figures and a page for a finished run or sweep, rebuilt from its folder alone."""

from pathlib import Path

from rich.text import Text

from retro_lab import console
from retro_lab.errors import RetroLabError
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.records import load_run
from retro_lab.runs.sweeps import is_sweep, load_sweep
from retro_lab.tasks.config import RunConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Write the report into the run's folder, and print its tables and the page's path; only rank 0 does so.

    Raises:
        RetroLabError: Nothing there is finished; the message has the command to run.
        ArtifactError: A result is damaged, or the report cannot be written.
    """
    from retro_lab.report.build import write_run_report  # imported here, so that other tasks do not wait for matplotlib

    if not console.is_main_process():
        return
    path = folder.path
    if is_sweep(path):
        if not load_sweep(path).has_outcome:
            raise RetroLabError(
                f"Nothing to report in {path}: no cell has finished. To run the sweep: {folder.command}"
            )
        print_sweep_report(path)
        return
    found = load_run(path)
    if not found.models:
        reason = f"training failed ({found.error})" if found.error else "no model there is finished"
        raise RetroLabError(f"Nothing to report in {path}: {reason}. To train one: {folder.command}")
    report = write_run_report(path)
    for table in report.tables.values():
        console.output.print(table.to_rich(), end="\n\n")
    console.status("report", str(report.page))
    console.status("figures", str(report.page.parent / "figures"))
    models = [path / record.model for record in found.models]
    console.status("models", ", ".join(map(str, models)))
    # Each logger that was in use has left a folder.
    logs = (str(model / name) for model in models for name in ("metrics", "wandb") if (model / name).is_dir())
    console.status("logs", ", ".join(logs) or "none")


def print_sweep_report(folder: Path) -> int:
    """Write the report of the sweep in `folder`, print its table and the page's path, and count the failed cells.

    Raises:
        ArtifactError: `folder` holds no sweep, or the report cannot be written.
    """
    from retro_lab.report.build import write_sweep_report

    report = write_sweep_report(folder)
    for table in report.tables.values():
        console.output.print(table.to_rich())
    for name, error in report.failures.items():
        summary = (error.strip().splitlines() or ["no reason given"])[-1]
        console.messages.print(Text.assemble(("failed ", "bold red"), f"{name}: {summary}"), soft_wrap=True)
    console.status("report", str(report.page))
    return len(report.failures)
