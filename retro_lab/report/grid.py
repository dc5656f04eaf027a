"""The cells that a sweep was started with, read from the `multirun.yaml` that Hydra's sweeper leaves."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

Overrides = dict[str, str]

MULTIRUN_NAME = "multirun.yaml"
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def read_overrides(path: Path) -> Overrides:
    """Read a cell's `.hydra/overrides.yaml`, a list of `key=value`, into values by key.

    Raises:
        ValueError: The file cannot be read or is not such a list.
    """
    try:
        return _by_key(_plain(OmegaConf.load(path)))
    except (OSError, YAMLError, OmegaConfBaseException, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def planned_cells(sweep_folder: Path) -> list[Overrides]:
    """Return the overrides of every cell of the latest sweep in the folder, in the order they were to be run.

    Empty where that cannot be told: no `multirun.yaml`, or a sweeper that chooses its cells as it goes.
    """
    path = sweep_folder / MULTIRUN_NAME
    if not path.is_file():
        return []
    try:
        config = OmegaConf.load(path)
        if OmegaConf.select(config, "hydra.sweeper._target_") != SWEEPER:
            return []
        grid = _plain(config.hydra.sweeper.params) or {}
        given = _plain(config.hydra.overrides.task)
        # Later ones replace earlier ones: the command line wins over the sweep file, as in Hydra's own sweeper.
        parsed = OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in grid.items()), *given])
    except (OSError, YAMLError, OmegaConfBaseException, HydraException, AttributeError, TypeError):
        return []
    choices: dict[str, list[str]] = {}
    for override in parsed:
        key = override.get_key_element()
        swept = override.is_sweep_override()
        values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        choices[key] = [f"{key}={value}" for value in values]
    return [_by_key(cell) for cell in itertools.product(*choices.values())]


def _plain(node: Any) -> Any:
    """Return lists and dictionaries as written, for what looks like an interpolation may be part of a value."""
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


def _by_key(items: Iterable[str]) -> Overrides:
    """Split `key=value` items; a `+` before the key says how Hydra merges it and is no part of its name.

    The task is left out: it says what is done to a cell, such as reporting on it, and not what the cell is.
    """
    split = (str(item).lstrip("+").partition("=") for item in items)
    return {key: value for key, _, value in split if key != "task"}
