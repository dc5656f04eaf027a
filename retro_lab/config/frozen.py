"""A composed configuration as plain data, from which a later process gets the same one without any of its files.

A job of a cluster begins hours after it was submitted. What it runs must not depend on what the configuration files
say by then, nor may the frozen form hold secrets: values from environment variables stay references to them.
"""

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from retro_lab.config import resolvers
from retro_lab.config.check import as_written
from retro_lab.tasks.config import RunConfig

PACKAGE = "retro_lab."
OF_HYDRA = ("mode", "overrides", "runtime", "job", "run", "sweep")
"""What a run may ask Hydra about itself."""


def freeze(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Return a composed configuration, `hydra` node included, as dictionaries, lists and scalars.

    Args:
        config: What `session` composes.
        folder: That the run writes to.
    """
    settings = _with_own_values(as_written(config), config)
    hydra = {key: value for key, value in settings.pop("hydra").items() if key in OF_HYDRA}
    hydra["run"]["dir"] = hydra["runtime"]["output_dir"] = str(folder)
    hydra["runtime"]["cwd"] = str(Path.cwd())
    hydra["sweep"] = {"dir": str(config.hydra.sweep.dir), "subdir": str(config.hydra.sweep.subdir)}
    schemas = {path: name for path, name in _schemas(config, "") if path != "hydra"}
    return {"settings": settings, "schemas": schemas, "hydra": hydra}


def thaw(frozen: Mapping[str, Any]) -> DictConfig:
    """Return the configuration that `freeze` was given, typed, without its `hydra` node, which Hydra is told about.

    Raises:
        ValueError: A schema is not one of this laboratory's.
    """
    resolvers.register()
    config = OmegaConf.structured(RunConfig)
    for path, name in sorted(frozen["schemas"].items()):
        module, _, kind = name.partition(":")
        if not module.startswith(PACKAGE):
            raise ValueError(f"{path} has the schema {name}, which is not one of {PACKAGE}*")
        schema = OmegaConf.structured(getattr(importlib.import_module(module), kind))
        for key in schema:
            if any(below.startswith(f"{path}.{key}.") for below in frozen["schemas"]) and OmegaConf.is_missing(
                schema, key
            ):
                schema[key] = {}  # a place for the schemas below
        OmegaConf.update(config, path, schema)
    merged = OmegaConf.merge(config, frozen["settings"])
    assert isinstance(merged, DictConfig)
    hydra = OmegaConf.merge(OmegaConf.structured(HydraConf), frozen["hydra"])
    whole = merged.copy()
    OmegaConf.set_struct(whole, False)
    with open_dict(whole):
        whole["hydra"] = hydra
    HydraConfig.instance().set_config(whole)
    return merged


def _with_own_values(written: Any, node: Any) -> Any:
    """Replace interpolations that call a function of ours, which would look into the files again, by their values."""
    own = re.compile(rf"\$\{{({'|'.join(resolver.__name__ for resolver in resolvers.RESOLVERS)}):")
    if isinstance(written, dict):
        return {key: _value(written, node, key, own) for key in written}
    if isinstance(written, list):
        return [_value(written, node, key, own) for key in range(len(written))]
    return written


def _value(written: Any, node: Any, key: Any, own: re.Pattern[str]) -> Any:
    text = written[key]
    if isinstance(text, str) and own.search(text):
        value = node[key]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return _with_own_values(text, node[key]) if isinstance(text, dict | list) else text


def _schemas(node: DictConfig, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the path of each node with a schema and the schema's name, parents first."""
    for key in map(str, node):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if not isinstance(value, DictConfig):
            continue
        path = f"{prefix}{key}"
        kind = OmegaConf.get_type(value)
        if isinstance(kind, type) and is_dataclass(kind):
            yield path, f"{kind.__module__}:{kind.__qualname__}"
        if path != "hydra":
            yield from _schemas(value, f"{path}.")
