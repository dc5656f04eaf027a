"""Names of run folders: what was run, not when, so that the same command comes back to the same folder."""

import hashlib
import re
from collections.abc import Iterable

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

LONGEST = 100
UNTOUCHED = ("task", "evaluation", "paths", "logger", "callbacks", "hydra", "name", "report", "data.workers")
"""Keys that change nothing of what is trained: commands that differ in them alone work on the same folder."""


def slug(overrides: Iterable[str]) -> str:
    """Return a folder name for a set of overrides: the experiment or sweep, then the rest in sorted order.

    Characters that file systems dislike become `-`; a name that lost something that way, or that is too long, ends in
    a hash of the whole, so that two sets of overrides never share a folder.
    """
    first: list[str] = []
    rest: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~").partition("@")[0]
        if key in ("experiment", "sweep"):
            first.append(value)
        elif not any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in UNTOUCHED):
            rest.append(override)
    whole = ",".join([*first, *sorted(rest)])
    if not whole:
        return "default"
    name = re.sub(r"[^A-Za-z0-9_.,=+~-]+", "-", whole).strip("-.")
    if name != whole or len(name) > LONGEST:
        digest = hashlib.sha256(whole.encode("utf-8")).hexdigest()[:8]
        name = f"{name[: LONGEST - 9]}-{digest}"
    return name


def run_name(*, _root_: DictConfig) -> str:
    """Resolve `${run_name:}`: `name` if it is given, else the slug of the run's overrides."""
    given = OmegaConf.select(_root_, "name")
    return str(given) if given else cell_name(_root_=_root_)


def cell_name(*, _root_: DictConfig) -> str:
    """Resolve `${cell_name:}`: the slug of a job's overrides, among them its cell of the sweep."""
    overrides = OmegaConf.select(_root_, "hydra.overrides.task")
    if overrides is None:  # the job's own configuration has no hydra node
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return slug(override for override in overrides if not override.startswith("+sweep="))


def register() -> None:
    """Make the resolvers known to OmegaConf; may be called again."""
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("cell_name", cell_name, replace=True)
