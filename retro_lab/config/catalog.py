"""What there is to choose from: groups, their options, and every setting with its type, value and description."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING as DATACLASS_MISSING
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING, OmegaConf

from retro_lab.config.roots import GROUP_FOLDERS, config_files, config_root, group_folders
from retro_lab.config.schema import KINDS, SCHEMA_SUFFIX
from retro_lab.config.session import session
from retro_lab.tasks.config import RunConfig

FREE_GROUPS = ("trainer", "callbacks", "logger")
"""Groups whose keys are arguments of other libraries; they have no schema."""


@dataclass(frozen=True)
class Setting:
    """A key that can be given a value."""

    key: str
    type: str
    default: Any
    text: str


def groups() -> list[str]:
    """Return the names of all config groups, the mounted ones first."""
    own = sorted(path.name for path in config_root("conf").iterdir() if path.is_dir() and path.name != "hydra")
    return [*GROUP_FOLDERS, *own]


def options(group: str) -> dict[str, Path]:
    """Return the options of a config group with their files, the user's own before a shipped one of the same name."""
    folders = group_folders(group) if group in GROUP_FOLDERS else [config_root("conf") / group]
    files: dict[str, Path] = {}
    for folder in folders:
        for path in config_files(folder):
            files.setdefault(path.stem, path)
    return dict(sorted(files.items()))


def describe(path: Path) -> str:
    """Return the first comment line of a file that is not a `# @package` header: what the file is for."""
    # A file in another encoding is refused when it is composed.
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        comment = line.removeprefix("#").strip()
        if not line.startswith("#"):
            return ""
        if not comment.startswith("@"):
            return comment
    return ""


def kind_of(group: str, option: str) -> str | None:
    """Return the kind whose schema an option's file names, itself or through the options that it builds on.

    Returns:
        None in a group without kinds.
    """
    text = options(group)[option].read_text(encoding="utf-8")
    for name in re.findall(r"^\s*- (\w+)\s*$", text, flags=re.MULTILINE):
        kind = name.removesuffix(SCHEMA_SUFFIX)
        if kind != name and kind in KINDS.get(group, ()):
            return kind
        if name in options(group) and (inherited := kind_of(group, name)):
            return inherited
    return None


def schema_of(group: str, option: str) -> type | None:
    """Return the dataclass of an option's keys, None in a group without a schema."""
    kind = kind_of(group, option)
    schema = KINDS[group][kind] if kind else get_type_hints(RunConfig).get(group)
    return schema if isinstance(schema, type) and is_dataclass(schema) else None


def schema_settings(schema: type, prefix: str) -> list[Setting]:
    """Return the settings of a dataclass, those of nested ones in their place."""
    texts = _field_texts(schema)
    found = []
    for entry in fields(schema):
        key = prefix + entry.name
        if isinstance(entry.type, type) and is_dataclass(entry.type):
            found += schema_settings(entry.type, f"{key}.")
        else:
            default = entry.default if entry.default_factory is DATACLASS_MISSING else entry.default_factory()
            default = MISSING if default is DATACLASS_MISSING else default
            found.append(Setting(key, _type_name(entry.type), default, texts.get(entry.name, "")))
    return found


def _type_name(kind: Any) -> str:
    """Write a type as a user knows it: choices are named."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " | ".join(kind.__members__)
    if isinstance(kind, UnionType):
        return " | ".join("None" if part is NoneType else _type_name(part) for part in get_args(kind))
    return kind.__name__ if type(kind) is type else re.sub(r"(\w+\.)+", "", str(kind))


def option_settings(group: str, option: str) -> set[str]:
    """Return the keys that an option of a group with kinds brings."""
    kind = kind_of(group, option)
    return {setting.key for setting in schema_settings(KINDS[group][kind], f"{group}.")} if kind else set()


@cache
def all_settings() -> dict[str, Setting]:
    """Return every setting that a schema knows, by key."""
    found = schema_settings(RunConfig, "")
    for group, kinds in KINDS.items():
        for schema in kinds.values():
            found += schema_settings(schema, f"{group}.")
    return {setting.key: setting for setting in found}


@cache
def default_values() -> dict[str, Any]:
    """Return what every key is without any override, free-form groups and groups themselves included."""
    with session() as assemble:
        content = OmegaConf.to_container(assemble([]), resolve=False)
    assert isinstance(content, dict)
    del content["hydra"]
    return dict(_flat(content, ""))


def _flat(node: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


@cache
def _field_texts(schema: type) -> dict[str, str]:
    """Read the strings below the fields of a dataclass and of those it extends; Python itself throws them away."""
    texts = {}
    for part in reversed(schema.__mro__[:-1]):
        [definition] = ast.parse(inspect.getsource(part)).body
        assert isinstance(definition, ast.ClassDef)
        for statement, after in pairwise(definition.body):
            match statement, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = inspect.cleandoc(text)
    return texts
