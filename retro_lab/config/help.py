"""The text of `--help` and of `--help GROUP`, made from the configuration files and the schemas themselves."""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

from omegaconf import MISSING

from retro_lab.config.catalog import (
    FREE_GROUPS,
    Setting,
    default_values,
    describe,
    groups,
    kind_of,
    options,
    schema_settings,
)
from retro_lab.config.explain import nearest
from retro_lab.config.schema import KINDS
from retro_lab.errors import ConfigurationError
from retro_lab.tasks.config import RunConfig

USAGE = """\
retro_lab: retrieval-enhanced language models, configured through Hydra

  python -m retro_lab [KEY=VALUE ...]                     run the quickstart, with other settings if given
  python -m retro_lab +experiment=NAME [KEY=VALUE ...]    run an experiment
  python -m retro_lab +sweep=NAME [KEY=VALUE ...]         run every cell of a sweep and make its table
  python -m retro_lab task=TASK +experiment=NAME          run one task of an experiment
  python -m retro_lab +experiment=NAME --cfg job          print the configuration and stop
  python -m retro_lab submit [KEY=VALUE ...]              run any of these as jobs of a SLURM cluster
  python -m retro_lab status [FOLDER]                     show the jobs that were submitted
  python -m retro_lab --help GROUP                        explain the settings of a group

If interrupted, run the same command again: it resumes, and reuses everything already built."""

EXAMPLES = """\
Overrides: retrieval.k=4, database.fraction=0.1, size=425m, init=retrofit, data.batch_size=8, name=my_run
Several values: -m retrieval.k=1,2,4 runs each; submit -m retrieval.k=1,2,4 on a cluster
Your own corpus: corpus=local corpus.path=FILE.jsonl corpus.text_field=text
Your own experiments: ./experiments/NAME.yaml and ./sweeps/NAME.yaml in the working directory
Completion: eval "$(retro-lab -sc install=bash)"; more on Hydra's own flags: --hydra-help"""

LISTED = {"task": "Tasks", "experiment": "Experiments", "sweep": "Sweeps"}
WIDTH = 120


def help_text() -> str:
    """Return usage, tasks, experiments and sweeps with a line each, and the options of every other group."""
    listed = [_described(title, options(group)) for group, title in LISTED.items()]
    others = {group: ", ".join(options(group)) for group in groups() if group not in LISTED}
    return "\n\n".join([USAGE, *listed, "\n".join(["Groups (GROUP=OPTION):", *_columns(others)]), EXAMPLES])


def group_help(group: str) -> str:
    """Return the options of a group, and its settings with their types, default values and descriptions.

    Raises:
        ConfigurationError: There is no such group.
    """
    if group not in groups():
        near = nearest(group, groups())
        guess = f"; did you mean {near}?" if near else "."
        raise ConfigurationError(f"There is no group {group}{guess} The groups are {', '.join(groups())}.")
    sections = [_described(f"{group}=OPTION", options(group))]
    values = default_values()
    schema = get_type_hints(RunConfig).get(group)
    if group in KINDS:
        for kind, node in KINDS[group].items():
            fitting = [option for option in options(group) if kind_of(group, option) == kind]
            title = f"Settings of {', '.join(fitting)}:" if fitting else f"Settings of kind {kind}:"
            sections.append(_explained(title, schema_settings(node, f"{group}."), values))
    elif is_dataclass(schema) and isinstance(schema, type):
        sections.append(_explained("Settings:", schema_settings(schema, f"{group}."), values))
    elif group in FREE_GROUPS:
        rows = [f"  {key} = {_shown(value)}" for key, value in values.items() if key.startswith(f"{group}.")]
        sections.append("\n".join([f"Settings (+{group}.KEY=VALUE adds any other that the class has):", *rows]))
    return "\n\n".join(sections)


def _described(title: str, files: Mapping[str, Path]) -> str:
    return "\n".join([f"{title}:", *_columns({option: describe(path) for option, path in files.items()})])


def _columns(rows: Mapping[str, str]) -> list[str]:
    width = max((len(name) for name in rows), default=0)
    lines: list[str] = []
    for name, text in rows.items():
        first, rest = f"  {name:<{width}}  ", " " * (width + 4)
        lines += textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest) or [first.rstrip()]
    return lines


def _explained(title: str, settings: Iterable[Setting], values: Mapping[str, object]) -> str:
    lines = [title]
    for setting in settings:
        if "._" in setting.key:  # which class to make is the option's own business
            continue
        value = values.get(setting.key, setting.default)
        shown = "(must be given)" if value == MISSING else f"= {_shown(value)}"
        lines.append(f"  {setting.key}: {setting.type} {shown}")
        lines += textwrap.wrap(setting.text, WIDTH, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _shown(value: object) -> str:
    """Write a value as an override would."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
