"""Names of run folders: what was run, not when, so that the same command comes back to the same folder."""

import hashlib
import re
from collections.abc import Iterable

LONGEST = 100
FOLDER_NAME = r"[A-Za-z0-9_~][A-Za-z0-9_.,=+~-]*"
RESERVED = ("sweeps",)
"""Names of folders beside those of the runs."""
IGNORED = ("task", "evaluation", "paths", "logger", "callbacks", "hydra", "name", "data.workers")
"""Keys that change nothing of what is trained: commands that differ in them alone work on the same folder."""


def slug(overrides: Iterable[str], ignored: Iterable[str] = IGNORED) -> str:
    """Return a folder name for a set of overrides, or keys: the experiment or sweep, then the rest in sorted order.

    Characters that file systems dislike become `-`; a name that lost something that way, or that is too long, ends in
    a hash of the whole, so that two sets of overrides never share a folder.
    """
    parts: dict[str, str] = {}
    for override in overrides:
        key = override_key(override)
        if not any(key == name or key.startswith((f"{name}.", f"{name}/", f"{name}@")) for name in ignored):
            parts[key] = override.lstrip("+")  # the last one wins, as in Hydra
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
    """Return the key of an override such as `+experiment=quickstart`, without the signs before it."""
    return override.partition("=")[0].lstrip("+~")
