"""A sweep: its cells, which are written down as it starts, the axes that vary between them, and each cell's status.

sweep.json    the cells: the folder and the overrides of each
CELL/         a run folder
report/       of all cells
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retro_lab.artifacts.manifest import write_json
from retro_lab.errors import ArtifactError
from retro_lab.runs.folder import CONFIG_NAME, FAILURE_NAME, MODELS, read_config
from retro_lab.runs.identity import decides
from retro_lab.runs.naming import override_key
from retro_lab.runs.records import RunRecord, load_run

Status = Literal["done", "failed", "missing"]
Overrides = Mapping[str, str]

PLAN_NAME = "sweep.json"
SEARCH_DEPTH = 3
"""Folder levels below the sweep to search for cells: an override of a nested group has slashes in its folder name."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep; `run` is None if its folder does not exist yet or cannot be read."""

    name: str
    overrides: Overrides
    run: RunRecord | None = None
    error: str | None = None

    @property
    def status(self) -> Status:
        """The cell's status; `missing` means not started, still running, or killed."""
        if self.error is not None:
            return "failed"
        return "done" if self.run and self.run.models and not self.run.unfinished else "missing"


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """Everything recorded in a sweep folder; `axes` are the keys of the overrides that differ between cells."""

    name: str
    folder: Path
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def has_outcome(self) -> bool:
        """Whether any cell has a result or a failure to report."""
        return any(cell.error is not None or (cell.run and cell.run.models) for cell in self.cells)

    def with_status(self, status: Status) -> tuple[Cell, ...]:
        """Return the cells with this status."""
        return tuple(cell for cell in self.cells if cell.status == status)


def by_key(overrides: Iterable[str]) -> dict[str, str]:
    """Return the values of overrides such as `+experiment=quickstart` by key.

    The task is left out, because it says what to do with a cell, such as report on it, and not what the cell is.
    """
    split = {override_key(text): text.partition("=")[2] for text in overrides}
    return {key: value for key, value in split.items() if key != "task"}


def write_plan(folder: Path, cells: Mapping[str, Overrides]) -> None:
    """Write the plan of a starting sweep into its folder: its cells by the names of their folders.

    Cells of an earlier sweep in the same folder stay in the plan if they have been started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = {name: cell for name, cell in _read_plan(folder).items() if (folder / name).is_dir()}
    plan = dict(cells) | {name: cell for name, cell in earlier.items() if name not in cells}
    rows = [
        {"name": name, "overrides": [f"{key}={value}" for key, value in cell.items()]} for name, cell in plan.items()
    ]
    write_json(folder / PLAN_NAME, {"cells": rows})


def is_sweep(folder: Path) -> bool:
    """Return whether a folder belongs to a sweep rather than to a run."""
    return (folder / PLAN_NAME).is_file()


def load_sweep(folder: Path) -> SweepRecord:
    """Read all cells of a sweep: those planned, and those that a sweeper added along the way.

    A cell that cannot be read counts as failed, so that one damaged file does not hide the rest of the sweep.

    Raises:
        ArtifactError: `folder` holds neither a plan nor cells.
    """
    planned = _read_plan(folder)
    found = {path.relative_to(folder).as_posix(): path for path in _cell_folders(folder, SEARCH_DEPTH)}
    names = [*planned, *(name for name in found if name not in planned)]
    if not names:
        raise ArtifactError(f"{folder} holds no sweep: neither cells nor {PLAN_NAME}. Check the folder's name.")
    cells = [_load_cell(name, folder / name, planned.get(name)) for name in names]
    # Planned cells come first, so axes and their values keep the order in which the sweep was written.
    axes = _axes(cells)
    ranks = {axis: _ranks([cell.overrides for cell in cells], axis) for axis in axes}
    cells.sort(key=lambda cell: [*(ranks[axis][cell.overrides.get(axis)] for axis in axes), cell.name])
    return SweepRecord(name=folder.resolve().name, folder=folder, axes=axes, cells=tuple(cells))


def number(value: str | None) -> float | None:
    """Return an override's value as a number, or None if it is not a finite number."""
    try:
        parsed = float(value or "")
    except ValueError:
        return None
    return parsed if math.isfinite(parsed) else None


def _read_plan(folder: Path) -> dict[str, dict[str, str]]:
    """Return the overrides of the planned cells by name.

    Raises:
        ArtifactError: The plan exists but cannot be read.
    """
    path = folder / PLAN_NAME
    if not path.is_file():
        return {}
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return {str(cell["name"]): by_key(cell["overrides"]) for cell in cells}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is not the plan of a sweep ({error}); delete it, and run the sweep's command again."
        ) from error


def _cell_folders(folder: Path, depth: int) -> Iterator[Path]:
    if not folder.is_dir() or depth == 0:
        return
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith(".") or path.name == "report":
            continue
        if any((path / mark).exists() for mark in (CONFIG_NAME, FAILURE_NAME, *MODELS)):
            yield path
        else:
            yield from _cell_folders(path, depth - 1)


def _load_cell(name: str, folder: Path, planned: Overrides | None) -> Cell:
    overrides = planned or {}
    try:
        if not folder.is_dir():
            return Cell(name=name, overrides=overrides)
        run = load_run(folder)
        if planned is None:
            overrides = by_key(map(str, read_config(folder)["overrides"]))
    except (ArtifactError, ValueError) as error:
        return Cell(name=name, overrides=overrides, error=str(error))
    return Cell(name=name, overrides=overrides, run=run, error=run.error)


def _axes(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the keys that tell cells apart: of those that differ, what decides a model, or is in a folder's name.

    Cells that were scored by another command, or that several sweep files share, are not other cells for that.
    """
    keys = dict.fromkeys(key for cell in cells for key in cell.overrides)
    varied = (key for key in keys if len({cell.overrides.get(key) for cell in cells}) > 1)
    named = [key for key in varied if decides(key) or any(f"{key}=" in cell.name for cell in cells)]
    return tuple(key for key in named if key != "sweep")


def _ranks(cells: Sequence[Overrides], axis: str) -> dict[str | None, int]:
    """Order the values of an axis: numbers by size, then other values as written, then cells without a value."""
    values = list(dict.fromkeys(cell.get(axis) for cell in cells))

    def rank(value: str | None) -> tuple[bool, bool, float]:
        parsed = number(value)
        return value is None, parsed is None, parsed or 0.0

    return {value: i for i, value in enumerate(sorted(values, key=rank))}
