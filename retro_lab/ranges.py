"""The ranges of settings, which each group of the configuration checks as soon as it is composed."""

import math
from collections.abc import Callable
from typing import Any

from retro_lab.errors import ConfigurationError

Rule = tuple[Callable[[float], bool], str]
POSITIVE: Rule = (lambda value: value > 0, "must be positive")
NOT_NEGATIVE: Rule = (lambda value: value >= 0, "must be 0 or more")
SHARE: Rule = (lambda value: 0 < value <= 1, "is a share, above 0 and up to 1")
RATIO: Rule = (lambda value: 0 <= value <= 1, "is a share, from 0 to 1")
WEIGHT: Rule = (lambda value: 0 <= value < 1, "is a weight, at least 0 and below 1")
DROPPED: Rule = (lambda value: 0 <= value < 1, "is a share, at least 0 and below 1")
DECAY: Rule = (lambda value: 0 <= value < 1, "is a rate of decay, at least 0 and below 1")
PORT: Rule = (lambda value: 0 <= value < 2**16, "must be from 0 to 65,535")
SEED: Rule = (lambda value: 0 <= value < 2**32, "must be from 0 to 4,294,967,295")


def check_ranges(group: str, settings: Any, **rules: Rule) -> None:
    """Check the numbers of a group, and those in its lists; null passes.

    Args:
        group: Name of the group, for the sentence.
        settings: The group.
        rules: What has to hold for each setting, by name.

    Raises:
        ConfigurationError: A number is not finite, or out of its range.
    """
    for name, (holds, wanted) in rules.items():
        value = getattr(settings, name)
        key = f"{group}.{name}" if group else name
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float):
                continue
            if not math.isfinite(number):
                raise ConfigurationError(f"{key} must be a finite number, not {number}.")
            if not holds(number):
                raise ConfigurationError(f"{key} {wanted}, not {number}.")
