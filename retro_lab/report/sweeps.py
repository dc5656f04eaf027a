"""A sweep: its cells, what varies between them, and how far each one is."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retro_lab.errors import ArtifactError
from retro_lab.report.grid import MULTIRUN_NAME, Overrides, planned_cells, read_overrides
from retro_lab.report.records import FAILURE_NAME, MODELS, RunRecord, load_run

Status = Literal["done", "failed", "missing"]

SEARCH_DEPTH = 3
"""Folder levels below the sweep to look for cells in: an override of a nested group has slashes in its folder name."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep; `run` is None where no folder is there yet or it cannot be read."""

    name: str
    overrides: Overrides
    run: RunRecord | None = None
    error: str | None = None

    @property
    def status(self) -> Status:
        """Tell how far the cell is; `missing` is not started, still running, or killed."""
        if self.error is not None:
            return "failed"
        return "done" if self.run and self.run.models and not self.run.unfinished else "missing"


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """Everything a sweep folder says; `axes` are the keys of the overrides that differ between cells."""

    name: str
    folder: Path
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def has_outcome(self) -> bool:
        """Tell whether any cell has a result or a failure to report."""
        return any(cell.error is not None or (cell.run and cell.run.models) for cell in self.cells)

    def with_status(self, status: Status) -> tuple[Cell, ...]:
        """Return the cells that are in `status`."""
        return tuple(cell for cell in self.cells if cell.status == status)


def is_sweep(folder: Path) -> bool:
    """Tell a sweep folder from a run folder."""
    return (folder / MULTIRUN_NAME).is_file()


def load_sweep(folder: Path) -> SweepRecord:
    """Read all cells found in `folder`, of whichever sweep, and add those of the latest one that are not there yet.

    A cell that cannot be read counts as failed: one damaged file does not hide the rest of the sweep.

    Raises:
        ArtifactError: `folder` holds no cell and no sweep.
    """
    planned = planned_cells(folder)
    found = [_load_cell(folder, path) for path in _cell_folders(folder, SEARCH_DEPTH)]
    there = [cell.overrides for cell in found]
    missing = [Cell(name=_name(cell), overrides=cell) for cell in planned if cell not in there]
    cells = found + missing
    if not cells:
        raise ArtifactError(f"{folder} holds no sweep: neither cells nor {MULTIRUN_NAME}. Check the folder's name.")
    # Planned cells come first, so that axes and their values stand in the order the sweep was written in.
    axes = _axes([*planned, *(cell.overrides for cell in cells)])
    ranks = {axis: _ranks([*planned, *there], axis) for axis in axes}
    cells.sort(key=lambda cell: [*(ranks[axis][cell.overrides.get(axis)] for axis in axes), cell.name])
    return SweepRecord(name=folder.resolve().name, folder=folder, axes=axes, cells=tuple(cells))


def number(value: str | None) -> float | None:
    """Return the number that an override's value spells, or None if it is no finite number."""
    try:
        parsed = float(value or "")
    except ValueError:
        return None
    return parsed if math.isfinite(parsed) else None


def _cell_folders(folder: Path, depth: int) -> Iterator[Path]:
    if not folder.is_dir() or depth == 0:
        return
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith(".") or path.name == "report":
            continue
        marks = (".hydra", FAILURE_NAME, *MODELS)
        if any((path / mark).exists() for mark in marks):
            yield path
        else:
            yield from _cell_folders(path, depth - 1)


def _load_cell(sweep_folder: Path, folder: Path) -> Cell:
    name = folder.relative_to(sweep_folder).as_posix()
    overrides: Overrides = {}
    try:
        overrides = read_overrides(folder / ".hydra" / "overrides.yaml")
        run = load_run(folder)
    except (ArtifactError, ValueError) as error:
        return Cell(name=name, overrides=overrides, error=str(error))
    return Cell(name=name, overrides=overrides, run=run, error=run.error)


def _name(overrides: Overrides) -> str:
    return ",".join(f"{key}={value}" for key, value in overrides.items())


def _axes(cells: Sequence[Overrides]) -> tuple[str, ...]:
    keys = dict.fromkeys(key for cell in cells for key in cell)
    return tuple(key for key in keys if len({cell.get(key) for cell in cells}) > 1)


def _ranks(cells: Sequence[Overrides], axis: str) -> dict[str | None, int]:
    """Order an axis: numbers by size, other values as they were written, cells without one last."""
    values = list(dict.fromkeys(cell.get(axis) for cell in cells))

    def rank(value: str | None) -> tuple[bool, bool, float]:
        parsed = number(value)
        return value is None, parsed is None, parsed or 0.0

    return {value: i for i, value in enumerate(sorted(values, key=rank))}
