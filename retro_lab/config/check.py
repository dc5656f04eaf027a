"""What is left to check once a configuration is composed."""

import re
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from retro_lab.config.explain import no_setting
from retro_lab.config.naming import FOLDER_NAME, RESERVED
from retro_lab.config.plain import no_value
from retro_lab.errors import ConfigurationError


def check(config: DictConfig) -> None:
    """Check a composed configuration that still has its `hydra` node.

    Raises:
        ConfigurationError: A key is not in the schema, a value is not given, or `name` is no name of a folder.
        OmegaConfBaseException: An interpolation refers to nothing.
    """
    _check_keys(config, "")
    if "submitit" in config.hydra.launcher._target_:
        _check_keys(config.hydra.launcher, "hydra.launcher.")
    name = config.name
    if name is not None and (not re.fullmatch(FOLDER_NAME, name) or name in RESERVED):
        raise ConfigurationError(f"name={name} cannot name a folder; use letters, digits and, after one, _ . , = + -.")


def _check_keys(node: Any, prefix: str) -> None:
    schema = OmegaConf.get_type(node)
    known = {entry.name for entry in fields(schema)} if is_dataclass(schema) else None
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        path = f"{prefix}{key}"
        if path == "hydra":
            continue
        if known is not None and key not in known:  # Hydra adds what has a `+` even to a node with a schema
            raise ConfigurationError(no_setting(path))
        if OmegaConf.is_missing(node, key):
            raise ConfigurationError(no_value(path))
        if OmegaConf.is_interpolation(node, key):
            if not _asks_about_the_run(node, key):
                node[key]
        elif OmegaConf.is_config(node[key]):
            _check_keys(node[key], f"{path}.")


def _asks_about_the_run(node: Any, key: Any) -> bool:
    """Tell whether an interpolation asks Hydra about the run, which has yet to begin."""
    content: Any = OmegaConf.to_container(node, resolve=False)
    return "${hydra:" in content[key]
