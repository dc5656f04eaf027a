"""One sentence, with the nearest valid name, for every way that a configuration can be wrong."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from retro_lab.config.roots import GROUP_FOLDERS, config_root, group_folders
from retro_lab.config.schema import KINDS, SCHEMA_SUFFIX, RunConfig

KEY_PATTERNS = (
    r"Key '(?P<key>[^']+)' not in '",
    r"Key '(?P<key>[^']+)' is not in struct",
    r"Could not override '(?P<key>[^']+)'",
    r"Could not append to config\. .*'(?P<key>[^']+)'",
)
GROUP_PATTERN = r"(?:Could not find|Could not load) '?(?P<group>[\w/]+)/(?P<option>[\w.-]+)'?"
MISSING_PATTERN = r"Missing mandatory value: (?P<key>[\w.]+)"


def explain(error: Exception) -> str:
    """Say in one sentence what is wrong with a configuration and what was probably meant."""
    text = _chain(error)
    if match := re.search(GROUP_PATTERN, text):
        group, option = match["group"], match["option"]
        options = group_options(group)
        return f"There is no {group}={option}{_nearest(option, options)} The options are {', '.join(options)}."
    place = _line(text, "full_key:")
    if match := re.search(r"Could not override '(?P<key>[^']+)'", text):
        return f"There is no setting {match['key']}{_nearest(match['key'], all_keys())}"
    for pattern in KEY_PATTERNS:
        if match := re.search(pattern, text):
            key = place if place and place.endswith(match["key"]) else match["key"]
            source = re.search(r"In '(?P<file>[^']+)'", text)
            where = f" in {source['file']}" if source and source["file"] != "config" else ""
            return f"There is no setting {key}{where}{_nearest(key, all_keys())}"
    if match := re.search(MISSING_PATTERN, text):
        return f"{match['key']} has no value; give it one, as in {match['key']}=..."
    first = next((line.strip() for line in reversed(str(error).splitlines()) if _is_cause(line)), str(error))
    return f"{place}: {first.rstrip('.')}." if place and place not in first else f"{first.rstrip('.')}."


def is_configuration_error(error: Exception) -> bool:
    """Tell whether an exception comes from composing the configuration."""
    return isinstance(error, HydraException | OmegaConfBaseException)


def group_options(group: str) -> list[str]:
    """Return the options of a config group, schemas left out."""
    folders = group_folders(group) if group in GROUP_FOLDERS else [config_root("conf") / group]
    names = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    return sorted(name for name in names if not name.endswith(SCHEMA_SUFFIX))


def groups() -> list[str]:
    """Return the names of all config groups, the mounted ones first."""
    own = sorted(path.name for path in config_root("conf").iterdir() if path.is_dir() and path.name != "hydra")
    return [*GROUP_FOLDERS, *own]


def all_keys() -> list[str]:
    """Return every key that a schema knows, with the groups themselves, dotted."""
    keys = set(_keys(RunConfig, "")) | set(groups())
    for group, kinds in KINDS.items():
        for node in kinds.values():
            keys |= set(_keys(node, f"{group}."))
    return sorted(keys)


def _keys(node: Any, prefix: str) -> Iterator[str]:
    hints = get_type_hints(node)
    for entry in fields(node):
        yield prefix + entry.name
        if is_dataclass(hints[entry.name]):
            yield from _keys(hints[entry.name], f"{prefix}{entry.name}.")


def _nearest(name: str, candidates: Iterable[str]) -> str:
    names = list(candidates)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:  # the right key under the wrong parent, or the reverse
        tails = {candidate.rpartition(".")[2]: candidate for candidate in names}
        close = [tails[tail] for tail in difflib.get_close_matches(name.rpartition(".")[2], tails, n=1, cutoff=0.8)]
    return f"; did you mean {close[0]}?" if close else "."


def _chain(error: BaseException | None) -> str:
    """Return the messages of an exception and of all that caused it."""
    messages = []
    while error is not None:
        messages.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(messages)


def _line(text: str, start: str) -> str | None:
    found = (line.strip().removeprefix(start).strip() for line in text.splitlines() if line.strip().startswith(start))
    return next((value for value in found if value), None)


def _is_cause(line: str) -> bool:
    noise = ("full_key:", "object_type=", "reference_type=", "See https", "To append", "You can")
    return bool(line.strip()) and not line.strip().startswith(noise)


def configuration_file(group: str, option: str) -> Path:
    """Return the file of an option of a group, the user's own first."""
    folders = group_folders(group) if group in GROUP_FOLDERS else [config_root("conf") / group]
    return next(folder / f"{option}.yaml" for folder in folders if (folder / f"{option}.yaml").is_file())
