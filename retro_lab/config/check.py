"""What is left to check once a configuration is composed."""

import re
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from retro_lab.config.explain import no_setting
from retro_lab.config.naming import FOLDER_NAME, RESERVED
from retro_lab.config.plain import no_value
from retro_lab.errors import ConfigurationError

LARGEST_SEED = 2**32 - 1
"""Of NumPy's generators."""
TRAINING_TASKS = ("train", "compare")
KNOWN_CALLBACKS = ("retro_lab.", "pytorch_lightning.", "lightning.")
"""Beginnings of the names of callbacks that log no metrics of their own, as a user's may."""


def check(config: DictConfig) -> None:
    """Check a composed configuration that still has its `hydra` node.

    Raises:
        ConfigurationError: A key is not in the schema, a value is not given, `name` is no name of a folder,
            `seed` is out of range, or a callback waits for a metric that does not exist.
        OmegaConfBaseException: An interpolation refers to nothing.
    """
    _check_keys(config, "")
    if "submitit" in config.hydra.launcher._target_:
        _check_keys(config.hydra.launcher, "hydra.launcher.")
    name = config.name
    if name is not None and (not re.fullmatch(FOLDER_NAME, name) or name in RESERVED):
        raise ConfigurationError(f"name={name} cannot name a folder; use letters, digits and, after one, _ . , = + -.")
    if not 0 <= config.seed <= LARGEST_SEED:
        raise ConfigurationError(f"seed={config.seed} is not between 0 and {LARGEST_SEED:,}.")
    if config.task.name in TRAINING_TASKS:
        _check_monitors(config)


def _check_monitors(config: DictConfig) -> None:
    """Find the metrics that callbacks monitor; Lightning would look for them after the first validation."""
    callbacks = {name: node for name, node in config.callbacks.items() if OmegaConf.is_config(node)}
    if not all(str(node.get("_target_", "")).startswith(KNOWN_CALLBACKS) for node in callbacks.values()):
        return
    # In a comparison the baseline has the same callbacks, and there is nothing that it retrieves.
    scored = {0} if config.task.name == "compare" else {0, config.retrieval.k}
    metrics = ["train/loss", "train/learning_rate", *(f"validation/bits_per_byte/k={k}" for k in sorted(scored))]
    for name, node in callbacks.items():
        monitor = node.get("monitor")
        if monitor is not None and monitor not in metrics:
            raise ConfigurationError(
                f"callbacks.{name}.monitor={monitor} is no metric of task={config.task.name}; there are "
                f"{', '.join(metrics)}."
            )


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
