"""The tables of docs/configuration.md: each group's options, and every key with its type, default and description.

A table stands between the lines `<!-- GROUP -->` and `<!-- end -->`; the text around it is written by hand.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from typing import get_type_hints

from conf_files import yaml_value
from omegaconf import MISSING, OmegaConf

from retro_lab.config import catalog
from retro_lab.config.catalog import Setting
from retro_lab.config.roots import PACKAGE, config_root
from retro_lab.config.schema import KINDS
from retro_lab.tasks.config import RunConfig

REFERENCE = PACKAGE.parent / "docs" / "configuration.md"
TABLES = re.compile(r"^<!-- (\w+) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
ROOT = "run"
"""Name of the table of the keys that belong to no group."""


def with_tables(text: str) -> str:
    """Return the text of docs/configuration.md with its tables made anew."""
    return TABLES.sub(lambda match: f"<!-- {match[1]} -->\n\n{tables(match[1])}\n\n<!-- end -->", text)


def tables(group: str) -> str:
    """Return the tables of a group; of the keys that belong to none for `run`."""
    if group == ROOT:
        root = [setting for setting in catalog.schema_settings(RunConfig, "") if "." not in setting.key]
        return _keys([setting for setting in root if setting.key not in catalog.FREE_GROUPS])
    parts = [_options(group)]
    schema = get_type_hints(RunConfig).get(group)
    if is_dataclass(schema) and isinstance(schema, type):
        parts.append(_keys(catalog.schema_settings(schema, f"{group}.")))
    for kind, node in KINDS.get(group, {}).items():
        parent = node.__mro__[1]
        inherited = {setting.key for setting in catalog.schema_settings(parent, f"{group}.")}
        added = [setting for setting in catalog.schema_settings(node, f"{group}.") if setting.key not in inherited]
        besides = next((f", besides the keys of {_named(group, name)}" for name, other in KINDS[group].items()
                        if other is parent), "")  # fmt: skip
        parts.append(f"With {_named(group, kind)}{besides}:\n\n{_keys(added)}")
    return "\n\n".join(parts)


def _named(group: str, kind: str) -> str:
    return ", ".join(f"`{option}`" for option in catalog.options(group) if catalog.kind_of(group, option) == kind)


def _options(group: str) -> str:
    rows = ((f"`{option}`", catalog.describe(path)) for option, path in catalog.options(group).items())
    return _table((f"`{group}=`", ""), rows)


def _keys(settings: Iterable[Setting]) -> str:
    rows = (
        (f"`{setting.key}`", f"`{setting.type}`", _default(setting), setting.text)
        for setting in settings
        if "._" not in setting.key  # which class to make is the option's own business
    )
    return _table(("key", "type", "default", ""), rows)


def _default(setting: Setting) -> str:
    """Write a default: the schema's, else the one that every file has; where files differ, it is up to the option."""
    if setting.default != MISSING:
        return f"`{yaml_value(setting.default)}`"
    group, _, key = setting.key.rpartition(".")
    files = catalog.options(group).values() if group else [config_root("conf") / "config.yaml"]
    contents = [OmegaConf.to_container(OmegaConf.load(path), resolve=False) for path in files]
    own = [content.get(group, content) for content in contents if isinstance(content, dict)]
    values = {yaml_value(content[key]) for content in own if key in content}
    if MISSING in values:
        return "must be given"
    return f"`{values.pop()}`" if len(values) == 1 else "by option"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(_lines([*head], rows))


def _lines(head: list[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        cells = (re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"
