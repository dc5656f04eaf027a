"""The arguments of the command line: filled in, checked by composing them, and handed to Hydra.

Everything that can be wrong with a configuration is found here, before Hydra makes a folder. A sweep is checked with
every value of its axes, so that a mistake in the last cell is not found after hours of training the first.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from omegaconf import MISSING, DictConfig

from retro_lab.config.check import check
from retro_lab.config.corpora import missing_corpora
from retro_lab.config.explain import explain_errors
from retro_lab.config.resolvers import named_after
from retro_lab.config.session import session
from retro_lab.config.strings import as_typed, literal
from retro_lab.config.sweeps import axes, fixed, representative_cells
from retro_lab.errors import ConfigurationError
from retro_lab.runs.naming import override_key, slug

DEFAULT_EXPERIMENT = "+experiment=quickstart"
APPENDED_GROUPS = ("experiment", "sweep", "debug")
"""Groups that have no default: Hydra merges these last, in the order in which they are given."""
UNNAMED = "default"
"""Last part of `hydra.sweep.dir` unless a sweep file gives another."""
PROMPT, PROMPT_TASK = "prompt=", "task=generate"
MULTIRUN_FLAGS = ("-m", "--multirun")


def complete(arguments: Sequence[str]) -> list[str]:
    """Fill in what a user may leave out: the quickstart if no experiment is named; for a sweep, multirun and its
    folders.

    Raises:
        ConfigurationError: An override or a configuration file is wrong, or a value that must be given is not.
        SystemExit: An option is not one of Hydra's.
    """
    arguments = list(arguments)
    parsed = get_args_parser().parse_intermixed_args(arguments)
    if parsed.shell_completion or parsed.experimental_rerun or parsed.hydra_help:
        return arguments
    flags = [argument for argument in arguments if argument not in parsed.overrides]
    _refuse_other_roots(parsed.config_name or parsed.config_path)
    overrides = in_order(with_experiment(with_prompt(parsed.overrides)))
    mode = next((text.partition("=")[2] for text in overrides if text.startswith("hydra.mode=")), None)
    sweep = any(text.startswith("+sweep=") for text in overrides)
    multirun = parsed.multirun or mode == "MULTIRUN" or (sweep and mode is None and not parsed.run)
    overrides = as_typed(overrides, multirun=multirun)
    settings: list[str] = []
    with explain_errors(overrides), session() as assemble:
        if parsed.cfg or parsed.info:  # what is printed may still lack values
            composed = assemble(fixed(overrides) if parsed.multirun else overrides)
            overrides += missing_corpora([composed])
        elif not multirun:
            composed = assemble(overrides)
            added = missing_corpora([composed])
            check(assemble([*overrides, *added]) if added else composed)
            overrides += added
        else:
            base = assemble(fixed(overrides))
            folder = _sweep_folder(base, overrides)
            if base.task.name.once_per_sweep:
                kept = [text for text in fixed(overrides) if override_key(text) != "hydra.mode"]
                return [*kept, f"hydra.run.dir={folder}", *(flag for flag in flags if flag not in MULTIRUN_FLAGS)]
            cells = {tuple(cell): assemble(cell) for cell in representative_cells(base, overrides)}
            added = missing_corpora(cells.values())
            for cell, composed in cells.items():
                check(assemble([*cell, *added]) if added else composed)
            overrides += added
            settings = _sweep_settings(folder, overrides)
    return [*overrides, *settings, *flags]


def with_experiment(overrides: Sequence[str]) -> list[str]:
    """Fill in what overrides apply to: the quickstart if they name no experiment, sweep or scale.

    An experiment's tokenizer, which Hydra prefers to that of an option, gives way to the one of the base of
    `backbone=hf`.
    """
    keys = [override_key(text) for text in overrides]
    named = any(key in ("experiment", "sweep", "scale") for key in keys)
    tokenizer = ["tokenizer=backbone"] if "backbone=hf" in overrides and "tokenizer" not in keys else []
    return [*([] if named else [DEFAULT_EXPERIMENT]), *overrides, *tokenizer]


def with_prompt(overrides: Sequence[str]) -> list[str]:
    """Write `prompt=TEXT` as the setting of `task=generate` that it is; the text is taken as it stands.

    Raises:
        ConfigurationError: The task is another one, or the text is `???`, which means that a value is missing.
    """
    prompts = [text.removeprefix(PROMPT) for text in overrides if text.startswith(PROMPT)]
    if prompts and PROMPT_TASK not in overrides:
        raise ConfigurationError(f"{PROMPT}TEXT is a text to continue, for {PROMPT_TASK}; add that, or leave it out.")
    if MISSING in prompts:
        raise ConfigurationError(
            f"{PROMPT}{MISSING} would say to the configuration that a value is missing; give a prompt that is just "
            "that in a file, with task.prompts=FILE."
        )
    return [
        f"task.prompt={literal(text.removeprefix(PROMPT))}" if text.startswith(PROMPT) else text for text in overrides
    ]


def in_order(overrides: Sequence[str]) -> list[str]:
    """Put the groups without a default first, each after those that it may change, with the `+` that Hydra needs.

    This is what lets a debug preset override an experiment: Hydra merges what is added after everything else.
    """
    added: dict[str, list[str]] = {group: [] for group in APPENDED_GROUPS}
    rest = []
    for override in overrides:
        if match := re.match(rf"\+*({'|'.join(APPENDED_GROUPS)})=", override):
            added[match[1]].append("+" + override.lstrip("+"))
        else:
            rest.append(override)
    return [*(override for group in APPENDED_GROUPS for override in added[group]), *rest]


def _refuse_other_roots(given: str | None) -> None:
    """Refuse to replace the configuration as a whole.

    Raises:
        ConfigurationError: Another one is given.
    """
    if given:
        raise ConfigurationError(
            f"{given} cannot replace retro_lab's own configuration; put your settings into "
            "./experiments/NAME.yaml in the working directory and run +experiment=NAME."
        )


def _sweep_folder(base: DictConfig, overrides: list[str]) -> str:
    """Return the folder of a sweep, quoted: the one given, or one named after what its cells share and what varies.

    The values of what varies stay out of it: more of them, asked for later, go to the same folder. So do the axes of
    a sweep file, which has a name. Its `hydra.sweep.dir` may name another sweep, whose cells it shares.
    """
    for text in overrides:
        if override_key(text) == "hydra.sweep.dir":
            return text.partition("=")[2]
    added = [axis for axis in axes(overrides) if axis not in map(override_key, base.hydra.sweeper.params or ())]
    named = named_after(fixed(overrides), base.trainer.precision)
    shared = Path(base.hydra.sweep.dir).name
    if shared != UNNAMED:
        named = [f"sweep={shared}" if override_key(text) == "sweep" else text for text in named]
    name = base.name or slug([*named, *added])
    return f"'${{paths.outputs}}/sweeps/{name}'"


def _sweep_settings(folder: str, overrides: list[str]) -> list[str]:
    """Return overrides that put the cells into the sweep's folder, each in a folder named after what varies."""
    settings = {
        "hydra.mode": "MULTIRUN",
        "hydra.sweep.dir": folder,
        "hydra.sweep.subdir": f"'${{cell_name:{','.join(axes(overrides))}}}'",
    }
    given = {override_key(text) for text in overrides}
    return [f"{key}={value}" for key, value in settings.items() if key not in given]
