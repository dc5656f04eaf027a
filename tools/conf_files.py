"""The files of conf/, which show every key of the schemas with its value and its description.

Every file of a group with a schema shows all of the group's keys. The keys above a divider are the option's own,
written by hand; those below it are the schema's defaults. The comment above a key is the description in the schema. A
remark of the option's own stands beside the value, or at the top of the file.
"""

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from retro_lab.config import catalog
from retro_lab.config.catalog import Setting
from retro_lab.config.roots import PACKAGE, config_root

COMMAND = "python tools/configuration.py"
WIDTH = 120
DIVIDER = "# Defaults of "
KEY = re.compile(r"(\w+):")


def conf_files() -> Iterator[tuple[Path, str]]:
    """Yield the files of the groups with a schema, each with the text that it should have."""
    for group in catalog.groups():
        for option, path in catalog.options(group).items():
            schema = catalog.schema_of(group, option)
            if schema and path.is_relative_to(config_root("conf")):
                yield path, with_all_keys(path.read_text(encoding="utf-8"), group, schema)


def with_all_keys(text: str, group: str, schema: type) -> str:
    """Return the text of an option's file with every key of its schema, each below its description.

    Args:
        text: The file as it is.
        group: Its group, under which a file for the whole configuration (`# @package _global_`) has the keys.
        schema: The dataclass of the keys.
    """
    lines = text.splitlines()
    if "# @package _global_" not in lines:
        start = next((row for row, line in enumerate(lines) if not line.startswith("#")), len(lines))
        if lines[start : start + 1] == ["defaults:"]:
            start += 1
            while start < len(lines) and lines[start].startswith(" "):
                start += 1
        inherits = "defaults:" in lines and not re.search(r"^  - \w+_schema$", text, flags=re.MULTILINE)
        body = _explained(lines[start:], schema, WIDTH, only_own=inherits)
        return "\n".join([*lines[:start], *([""] if start and body else []), *body, ""])
    start = lines.index(f"{group}:") + 1
    end = next((row for row in range(start, len(lines)) if re.match(r"\S", lines[row])), len(lines))
    block = _explained([line[2:] for line in lines[start:end]], schema, WIDTH - 2)
    rest = ["", *lines[end:]] if lines[end:] else []
    return "\n".join([*lines[:start], *(f"  {line}".rstrip() for line in block), *rest, ""])


def _explained(lines: Iterable[str], schema: type, width: int, only_own: bool = False) -> list[str]:
    """Return a group's own keys as they are written, then the others of its schema, each below its description."""
    source = Path(inspect.getfile(schema)).relative_to(PACKAGE.parent)
    divider = f"{DIVIDER}{schema.__name__} ({source}), written by `{COMMAND}`:"
    settings = {setting.key: setting for setting in catalog.schema_settings(schema, "")}
    entries: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith(DIVIDER):
            break
        if match := KEY.match(line):
            entries[match[1]] = [line]
        elif line.startswith(" "):
            entries[list(entries)[-1]].append(line)
    own = [[*(_comment(settings[key], width) if key in settings else []), *rows] for key, rows in entries.items()]
    missing = {key: setting for key, setting in settings.items() if key.partition(".")[0] not in entries}
    defaults = list(_defaults(missing, width)) if not only_own else []
    blocks = [*own, *([[divider]] if defaults else []), *defaults]
    return [line for block in blocks for line in ["", *block]][1:]


def _defaults(settings: Mapping[str, Setting], width: int) -> Iterator[list[str]]:
    """Yield each setting below its description; those of a nested group are indented below its name."""
    opened = ""
    for key, setting in sorted(settings.items(), key=_place):
        parent, _, name = key.rpartition(".")
        indent = "  " if parent else ""
        rows = [*_comment(setting, width - len(indent)), f"{name}: {yaml_value(setting.default)}"]
        yield [*([f"{parent}:"] if parent != opened and parent else []), *(indent + row for row in rows)]
        opened = parent


def _place(item: tuple[str, Setting]) -> int:
    """Sort the class to make first, then the keys that must be given, then the others in the schema's order."""
    key, setting = item
    return 0 if key.startswith("_") else 1 if setting.default == "???" else 2


def _comment(setting: Setting, width: int) -> list[str]:
    return textwrap.wrap(
        setting.text, width, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )


def yaml_value(value: Any) -> str:
    """Write a default as a person would in YAML: `1e-6`, `200_000`, `[0.9, 0.95]`, `null`."""
    match value:
        case Enum():
            return str(value.name)
        case bool() | None:
            return {None: "null", True: "true", False: "false"}[value]
        case int():
            return f"{value:_}" if abs(value) >= 10_000 else str(value)
        case float():
            digits, _, power = f"{value:e}".partition("e")
            scientific = f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
            return min(repr(value), scientific, key=len)
        case list():
            return f"[{', '.join(map(yaml_value, value))}]"
        case _:
            return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
