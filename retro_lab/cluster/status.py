"""`retro-lab status`: the jobs that were submitted, and how they stand."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from retro_lab import console, slurm
from retro_lab.cluster.files import JOB_FOLDER, SUBMITTED_NAME, JobFiles
from retro_lab.cluster.look import progress, standing
from retro_lab.errors import ClusterError, ConfigurationError

COLORS = {"waiting": "yellow", "running": "cyan", "done": "green", "failed": "red"}
SEARCH_DEPTH = 5


def status(arguments: Sequence[str]) -> int:
    """Print a table of all jobs below a folder, by default that of all outputs, and return the exit code.

    Args:
        arguments: At most one folder, of a run, a sweep or of many.

    Returns:
        1 if a job failed, else 0.

    Raises:
        ConfigurationError: There is no such folder, or no job in it.
    """
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise ConfigurationError("status takes one folder, of a run or a sweep, and nothing else.")
    folder = Path(arguments[0] if arguments else os.environ.get("RETRO_LAB_OUTPUTS", "outputs"))
    runs = sorted(_submitted(folder, SEARCH_DEPTH))
    if not runs:
        raise ConfigurationError(f"No job was submitted into {folder}; `retro-lab submit` submits some.")
    queue = None
    try:
        queue = slurm.queue()
    except ClusterError as error:
        console.status("cluster", f"{error} The table is what the jobs last wrote.")
    table = Table("Run", "Job", "State", "", box=None, pad_edge=False)
    counts: Counter[str] = Counter()
    for run in runs:
        found = standing(JobFiles(run), queue)
        if found is None:
            continue  # its submission failed
        counts[found.status] += 1
        note = progress(run) if found.status == "running" else found.error or ""
        name = str(run.relative_to(folder)) if run != folder else run.name
        table.add_row(
            Text(console.visible(name)),
            found.job,
            Text(found.status, COLORS[found.status]),
            Text(console.visible(note)),
        )
    console.output.print(table)
    console.output.print(", ".join(f"{counts[name]} {name}" for name in COLORS if counts[name]))
    return 1 if counts["failed"] else 0


def _submitted(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders at and below `folder` that a job was submitted for."""
    if (folder / JOB_FOLDER / SUBMITTED_NAME).is_file():
        yield folder
    elif depth and folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                yield from _submitted(path, depth - 1)
