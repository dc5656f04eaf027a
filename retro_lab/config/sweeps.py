"""Sweeps: the cells of a grid, planned once as it starts, and the report when the last cell is done."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from retro_lab import console
from retro_lab.errors import RetroLabError
from retro_lab.runs.naming import override_key, slug

OWN_SUBDIR = "${cell_name:"
"""How `hydra.sweep.subdir` begins unless a user has given another one."""


def cells(config: DictConfig, overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield the overrides of each cell of a grid, in order; none for a sweeper that makes up its own cells.

    Args:
        config: With its `hydra` node, composed with the overrides that have one value.
        overrides: All of the command line.
    """
    if config.hydra.sweeper._target_ != f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}":
        return
    params = OmegaConf.to_container(config.hydra.sweeper.params or OmegaConf.create(), resolve=True)
    assert isinstance(params, dict)
    # Later ones replace earlier ones: the command line wins over the sweep file, as in Hydra's own sweeper.
    grid = _parse([*(f"{key!s}={value}" for key, value in params.items()), *overrides])
    yield from BasicSweeper.split_arguments(grid, max_batch_size=None)[0]


def representative_cells(config: DictConfig, overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield cells of a grid in which every value of every axis occurs."""
    seen: set[str] = set()
    for cell in cells(config, overrides):
        if not seen.issuperset(cell):
            seen.update(cell)
            yield cell


def fixed(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that have one value."""
    return [
        text for text, override in zip(overrides, _parse(overrides), strict=True) if not override.is_sweep_override()
    ]


def axes(overrides: Sequence[str]) -> list[str]:
    """Return the keys of the overrides that have several values."""
    single = fixed(overrides)
    return [override_key(text) for text in overrides if text not in single]


def cell_folder(overrides: Sequence[str], varied: Collection[str]) -> str:
    """Return the name of a cell's folder: what is special about it, on the axes `varied`."""
    special = [text for text in overrides if override_key(text) in varied]
    # Whatever varies tells cells apart, even a setting that would not move a run to another folder.
    return slug(special, names=lambda _: True) if special else slug(overrides)


def varied_keys(config: DictConfig, given: Sequence[str]) -> set[str]:
    """Return the axes of a sweep: those of the command line, `given`, and those of its file."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or ()
    return {key.lstrip("+") for key in (*given, *params)}


class SweepCallback(Callback):
    """Hydra callback that plans a multirun at its start and reports it at its end; an entry of `hydra.callbacks`."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the cells into the sweep's folder, before the first of them starts.

        Raises:
            SystemExit: The folder cannot be written. Hydra turns every other exception of a callback into a warning.
        """
        from retro_lab.runs.sweeps import by_key, write_plan  # which loads what reads scores

        overrides = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        assert isinstance(overrides, list)
        varied = varied_keys(config, axes(overrides))
        subdir = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"])  # type: ignore[index,call-overload]
        planned = cells(config, overrides) if subdir.startswith(OWN_SUBDIR) else ()
        try:
            write_plan(Path(config.hydra.sweep.dir), {cell_folder(cell, varied): by_key(cell) for cell in planned})
        except (RetroLabError, OSError) as error:
            console.error(str(error))
            raise SystemExit(2) from error

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the report of the sweep in `hydra.sweep.dir` and print its table.

        Raises:
            SystemExit: A cell failed, or the report could not be made.
        """
        # Hydra imports callbacks at every start, and tasks take a second to load: import them here.
        from retro_lab.runs.sweeps import load_sweep
        from retro_lab.tasks.report import print_sweep_report

        folder = Path(config.hydra.sweep.dir)
        try:
            # A sweep of a task that trains nothing, such as `plan`, leaves nothing to report.
            failures = print_sweep_report(folder) if load_sweep(folder).has_outcome else 0
        except RetroLabError as error:
            console.error(str(error))
            raise SystemExit(1) from error
        except Exception as error:
            console.messages.print_exception()
            raise SystemExit(1) from error
        if failures:
            raise SystemExit(1)


def _parse(overrides: Sequence[str]) -> list[Override]:
    hydra = GlobalHydra.instance().hydra
    # The loader lets `glob(*)` see the options of a group.
    loader = hydra.config_loader if hydra else None
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
