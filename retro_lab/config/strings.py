"""Values of settings that take text, read as they were typed.

Hydra's grammar makes numbers, lists or errors of `2024_01_05`, `[a].txt`, `~/x` and `nprobe=32`. Where a setting takes
text, that is what was meant, and the value gets the quotes that Hydra wants.
"""

import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from retro_lab.config.catalog import all_settings
from retro_lab.runs.naming import override_key

TEXT_TYPES = ("str", "str | None")
YAML_NUMBER = re.compile(r"(?<![^\[,\s])[+-]?\.(nan|inf)\b", re.IGNORECASE)
"""YAML's `.nan` and `.inf`, which Hydra's grammar takes for text and knows as `nan` and `inf`."""
REFERENCE = re.compile(r"(\\*)\$\{")
"""How a reference to another setting begins, with the backslashes before it."""
WITH_COMMAS = ("index.factory", "index.search")
"""Settings whose single values have commas; at others a comma separates several values, which want -m."""


def as_typed(overrides: Sequence[str], *, multirun: bool = False) -> list[str]:
    """Quote the values of text settings that Hydra would read as something else, and expand a leading `~`.

    In a multirun a comma separates values, each of which is read as typed.
    """
    return [_as_typed(text, multirun) for text in overrides]


def takes_text(key: str) -> bool:
    """Tell whether the values of a setting are text."""
    setting = all_settings().get(_group_key(key))
    return setting is not None and setting.type in TEXT_TYPES


def takes_numbers(key: str) -> bool:
    """Tell whether the values of a setting are real numbers."""
    setting = all_settings().get(_group_key(key))
    return setting is not None and "float" in setting.type


def _group_key(key: str) -> str:
    """Return the key that a setting of one of `corpora` has in its group."""
    return re.sub(r"^corpora\.[^.]+\.", "corpus.", key)


def literal(text: str) -> str:
    """Write the value of an override that is exactly `text`, which is neither quoted nor escaped nor a reference."""
    # To OmegaConf a backslash is an escape only before a reference.
    return _quoted(REFERENCE.sub(lambda found: found[1] * 2 + r"\${", text))


def shell_override(key: str, value: str) -> str:
    """Write an override for the shell that sets a text, even one that looks like a number or a list."""
    override = f"{key}={_quoted(value)}"
    # Double quotes around Hydra's single ones can be read, where the shell finds nothing to replace in them.
    return shlex.quote(override) if re.search(r'["$`\\!]', override) else f'"{override}"'


def _as_typed(override: str, multirun: bool) -> str:
    start, equals, value = override.partition("=")
    key = override_key(override)
    if equals and takes_numbers(key):
        return f"{start}={YAML_NUMBER.sub(_without_dot, value)}"
    if not equals or not takes_text(key):
        return override
    several = multirun and not re.search(r"""['"(]""", value)
    values = value.split(",") if several else [value]
    return f"{start}={','.join(_text(key, one, multirun) for one in values)}"


def _without_dot(number: re.Match[str]) -> str:
    return number[0].replace(".", "")


def _text(key: str, value: str, multirun: bool) -> str:
    if re.match("~(/|$)", value):
        return _quoted(str(Path(value).expanduser()))
    try:
        [parsed] = _parser().parse_overrides([f"{key}={value}"])
    except HydraException:
        return _quoted(value)
    if parsed.is_sweep_override():
        return _quoted(value) if key in WITH_COMMAS and not multirun else value
    read = parsed.value()
    return value if read is None or isinstance(read, str | QuotedString) else _quoted(value)


def _quoted(value: str) -> str:
    return QuotedString(value, Quote.single).with_quotes()


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
