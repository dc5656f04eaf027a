"""The arguments of the command line: filled in, checked by composing them, and handed to Hydra.

Everything that can be wrong with a configuration is found here, before Hydra makes a folder. A sweep is checked with
every value of its axes, so that a mistake in the last cell is not found after hours of training the first.
"""

import re
import shlex
from collections.abc import Iterator, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from retro_lab.config.check import TRAINING_TASKS, check
from retro_lab.config.explain import friendly
from retro_lab.config.naming import override_key, slug
from retro_lab.config.session import session
from retro_lab.config.strings import as_typed
from retro_lab.errors import ConfigurationError

DEFAULT_ARGUMENTS = ("+experiment=quickstart",)
APPENDED_GROUPS = ("experiment", "sweep", "debug")
"""Groups that have no default: Hydra merges these last, in the order in which they are given."""
MULTIRUN_FLAGS = ("-m", "--multirun")
LENGTHS = (*APPENDED_GROUPS, "schedule.tokens")
"""What says how long to train; without any of them it is as long as the paper did."""
WHOLE_SWEEP_TASKS = ("report",)
"""Tasks that are done once for a sweep, in its folder, and not for every cell."""


def complete(arguments: Sequence[str]) -> list[str]:
    """Fill in what a user need not write: the quickstart for no arguments; for a sweep, multirun and its folders.

    Raises:
        ConfigurationError: An override or a configuration file is wrong, or a value that must be given is not.
        SystemExit: An option is not one of Hydra's.
    """
    arguments = list(arguments) or list(DEFAULT_ARGUMENTS)
    parsed = get_args_parser().parse_intermixed_args(arguments)
    if parsed.shell_completion or parsed.experimental_rerun or parsed.hydra_help:
        return arguments
    flags = [argument for argument in arguments if argument not in parsed.overrides]
    _refuse_other_roots(parsed.config_name or parsed.config_path)
    overrides = in_order(parsed.overrides)
    mode = next((text.partition("=")[2] for text in overrides if text.startswith("hydra.mode=")), None)
    sweep = any(text.startswith("+sweep=") for text in overrides)
    multirun = parsed.multirun or mode == "MULTIRUN" or (sweep and mode is None and not parsed.run)
    overrides = as_typed(overrides, multirun=multirun)
    cells: list[DictConfig] = []
    settings: list[str] = []
    with friendly(overrides), session() as assemble:
        if parsed.cfg or parsed.info:  # what is printed may still lack values
            assemble(_fixed(overrides) if parsed.multirun else overrides)
        elif not multirun:
            cells.append(assemble(overrides))
            check(cells[0])
        else:
            base = assemble(_fixed(overrides))
            folder = _sweep_folder(base, overrides)
            if base.task.name in WHOLE_SWEEP_TASKS:
                kept = [text for text in _fixed(overrides) if override_key(text) != "hydra.mode"]
                return [*kept, f"hydra.run.dir={folder}", *(flag for flag in flags if flag not in MULTIRUN_FLAGS)]
            for cell in _cells(base, overrides):
                cells.append(assemble(cell))
                check(cells[-1])
            cells = cells or [base]
            settings = _sweep_settings(folder, overrides)
        _check_intent(cells, arguments)
    return [*overrides, *settings, *flags]


def in_order(overrides: Sequence[str]) -> list[str]:
    """Put the groups without a default first, each after those that it may change, with the `+` that Hydra wants.

    Only so does a debug preset win over an experiment: Hydra merges what is added after everything else.
    """
    added: dict[str, list[str]] = {group: [] for group in APPENDED_GROUPS}
    rest = []
    for override in overrides:
        if match := re.match(rf"\+*({'|'.join(APPENDED_GROUPS)})=", override):
            added[match[1]].append("+" + override.lstrip("+"))
        else:
            rest.append(override)
    return [*(override for group in APPENDED_GROUPS for override in added[group]), *rest]


def command(overrides: Sequence[str]) -> str:
    """Return a command that runs a task with these overrides, the quickstart's where they name no experiment."""
    named = any(override_key(text) in ("experiment", "sweep") for text in overrides)
    words = overrides if named else [*DEFAULT_ARGUMENTS, *overrides]
    return shlex.join(["python", "-m", "retro_lab", *words])


def _refuse_other_roots(given: str | None) -> None:
    """Refuse to replace the configuration as a whole.

    Raises:
        ConfigurationError: Another one is given.
    """
    if given:
        raise ConfigurationError(
            f"{given} cannot take the place of retro_lab's own configuration; put settings of yours into "
            "./experiments/NAME.yaml in the working directory, and name them as +experiment=NAME."
        )


def _check_intent(cells: Sequence[DictConfig], arguments: Sequence[str]) -> None:
    """Refuse to train for as long as the paper did where nobody has asked for it.

    Raises:
        ConfigurationError: The task trains, and there is neither an experiment nor a number of tokens.
    """
    training = [cell for cell in cells if cell.task.name in TRAINING_TASKS]
    if training and not any(override_key(text) in LENGTHS for text in arguments):
        raise ConfigurationError(
            f"Nothing says what to train, and without an experiment task={training[0].task.name} trains on "
            f"{training[0].schedule.tokens:,.0f} tokens, as the paper did; name one, as in {command(arguments)}. "
            "Your own go into ./experiments/NAME.yaml in the working directory; schedule.tokens=... trains without one."
        )


def _sweep_folder(base: DictConfig, overrides: list[str]) -> str:
    """Return the folder of a sweep, quoted: the one given, or one named after what its cells share and what varies.

    The values of what varies stay out of it: more of them, asked for later, go to the same folder. So do the axes of
    a sweep file, which has a name.
    """
    for text in overrides:
        if override_key(text) == "hydra.sweep.dir":
            return text.partition("=")[2]
    axes = [axis for axis in _axes(overrides) if axis not in map(override_key, base.hydra.sweeper.params or ())]
    return f"'${{paths.outputs}}/sweeps/{base.name or slug([*_fixed(overrides), *axes])}'"


def _sweep_settings(folder: str, overrides: list[str]) -> list[str]:
    """Return what has Hydra run the cells in the sweep's folder, each in one named after what varies."""
    settings = {
        "hydra.mode": "MULTIRUN",
        "hydra.sweep.dir": folder,
        "hydra.sweep.subdir": f"'${{cell_name:{','.join(_axes(overrides))}}}'",
    }
    given = {override_key(text) for text in overrides}
    return [f"{key}={value}" for key, value in settings.items() if key not in given]


def _fixed(overrides: list[str]) -> list[str]:
    """Return the overrides that have one value."""
    return [
        text for text, override in zip(overrides, _parse(overrides), strict=True) if not override.is_sweep_override()
    ]


def _axes(overrides: list[str]) -> list[str]:
    """Return the keys of the overrides that have several values."""
    fixed = _fixed(overrides)
    return [override_key(text) for text in overrides if text not in fixed]


def _cells(base: DictConfig, overrides: list[str]) -> Iterator[list[str]]:
    """Yield cells of the grid in which every value of every axis occurs; none for a sweeper that makes up its own."""
    if base.hydra.sweeper._target_ != f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}":
        return
    params = OmegaConf.to_container(base.hydra.sweeper.params or OmegaConf.create(), resolve=True)
    assert isinstance(params, dict)
    # Later ones replace earlier ones: the command line wins over the sweep file, as in Hydra's own sweeper.
    grid = _parse([*(f"{key!s}={value}" for key, value in params.items()), *overrides])
    seen: set[str] = set()
    for cell in BasicSweeper.split_arguments(grid, max_batch_size=None)[0]:
        if not seen.issuperset(cell):
            seen.update(cell)
            yield cell


def _parse(overrides: list[str]) -> list[Override]:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    # The loader lets `glob(*)` see the options of a group.
    return OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(overrides)
