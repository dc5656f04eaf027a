"""Names of run folders: they say what was run, not when or where, so the same command returns to the same folder.

The one other name here is that of the metric which trackers draw all curves over.
"""

import hashlib
import re
from collections.abc import Callable, Iterable

from retro_lab.runs.identity import decides

LONGEST = 100
FOLDER_NAME = r"[A-Za-z0-9_~][A-Za-z0-9_.,=+~-]*"
RESERVED = ("sweeps",)
"""Names that other folders beside the runs use."""
TOKENS = "tokens"
"""Metric that trackers take for the x-axis: training tokens, which runs of any batch size share, as steps are not."""


def slug(overrides: Iterable[str], names: Callable[[str], bool] = decides) -> str:
    """Return a folder name for a set of overrides or keys: the experiment or sweep, then the rest in sorted order.

    Characters that file systems dislike become `-`. A name that lost something that way, or that is too long, ends in
    a hash of the whole, so that two sets of overrides never share a folder.

    Args:
        overrides: As on the command line; the last one of a key wins, as in Hydra.
        names: Returns whether a key is part of the name.
    """
    parts: dict[str, str] = {}
    for override in overrides:
        key = override_key(override)
        if names(key):
            parts[key] = override.lstrip("+")
    bases = [parts.pop(group).removeprefix(f"{group}=") for group in ("experiment", "sweep") if group in parts]
    whole = ",".join([*bases, *sorted(parts.values())])
    if not whole:
        return "default"
    name = re.sub(r"[^A-Za-z0-9_.,=+~-]+", "-", whole).strip("-.")
    if name != whole or len(name) > LONGEST or name in RESERVED:
        digest = hashlib.sha256(whole.encode("utf-8")).hexdigest()[:8]
        name = f"{name[: LONGEST - 9]}-{digest}"
    return name


def override_key(override: str) -> str:
    """Return the key of an override such as `+experiment=quickstart`, without the leading signs."""
    return override.partition("=")[0].lstrip("+~")
