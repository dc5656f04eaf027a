"""What happens when the last cell of a sweep is done: its report, its table, and an exit code that tells failure."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.text import Text

from retro_lab import console
from retro_lab.errors import RetroLabError


class SweepReport(Callback):
    """Hydra callback that reports a multirun; enabled by an entry of `hydra.callbacks` with this class as target."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the report of the sweep in `hydra.sweep.dir` and print its table.

        Raises:
            SystemExit: A cell failed, or the report could not be made. Hydra turns every other exception of a
                callback into a warning, so a failed sweep would end like a good one.
        """
        # Hydra imports callbacks at every start, and drawing libraries take a second to load: import them here.
        from retro_lab.report.sweeps import load_sweep

        folder = Path(config.hydra.sweep.dir)
        try:
            # A sweep of a task that trains nothing, such as `plan`, leaves nothing to report.
            failures = print_sweep_report(folder) if load_sweep(folder).has_outcome else 0
        except RetroLabError as error:
            console.messages.print(Text(str(error), style="red"), soft_wrap=True)
            raise SystemExit(1) from error
        except Exception as error:
            console.messages.print_exception()
            raise SystemExit(1) from error
        if failures:
            raise SystemExit(1)


def print_sweep_report(folder: Path) -> int:
    """Write the report of the sweep in `folder`, print its table and where the page is, and count the failed cells.

    Raises:
        ArtifactError: There is no sweep in `folder`, or the report cannot be written.
    """
    from retro_lab.report.build import write_sweep_report

    report = write_sweep_report(folder)
    console.output.print(report.table.to_rich())
    for name, error in report.failures.items():
        summary = (error.strip().splitlines() or ["no reason given"])[-1]
        console.messages.print(Text.assemble(("failed ", "bold red"), f"{name}: {summary}"), soft_wrap=True)
    console.status("report", str(report.page))
    return len(report.failures)
