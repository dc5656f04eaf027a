"""Checks of a composed configuration."""

import re
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from retro_lab.config.catalog import FREE_GROUPS
from retro_lab.config.explain import no_setting
from retro_lab.errors import ConfigurationError
from retro_lab.runs.naming import FOLDER_NAME, RESERVED
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.task_config import Task

KNOWN_CALLBACKS = ("retro_lab.", "pytorch_lightning.", "lightning.")
"""Prefixes of callback classes that log no metrics of their own; a user's callback may."""

TRAINING_METRICS = ("train/loss", "train/learning_rate", "train/gradient_norm")


def typed(config: DictConfig, resolve_all: bool = True) -> RunConfig:
    """Turn a composed configuration into dataclasses, which check their values, and plain dictionaries.

    Args:
        config: Without its `hydra` node, or with it.
        resolve_all: Whether interpolations in groups without a schema, which may ask Hydra about the run, are resolved.

    Raises:
        ConfigurationError: A value is out of its range, or values do not fit together.
    """
    groups: dict[str, Any] = {}
    for entry in fields(RunConfig):
        node = config[entry.name]
        if not OmegaConf.is_config(node):
            groups[entry.name] = node
        elif entry.name in FREE_GROUPS and not resolve_all:
            groups[entry.name] = OmegaConf.to_container(node, resolve=False)
        else:
            groups[entry.name] = OmegaConf.to_object(node)
    return RunConfig(**groups)


def as_written(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as dictionaries, lists and scalars, with interpolations as they are written."""
    content = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


def check(config: DictConfig) -> None:
    """Check a composed configuration that still has its `hydra` node.

    Raises:
        ConfigurationError: A key is not in the schema, a value is not given or out of its range, `name` cannot name a
            folder, or a callback waits for a metric that does not exist.
        OmegaConfBaseException: An interpolation refers to nothing.
    """
    _check_keys(config, "")
    name = config.name
    if name is not None and (not re.fullmatch(FOLDER_NAME, name) or name in RESERVED):
        raise ConfigurationError(f"name={name} cannot name a folder; use letters, digits and, after one, _ . , = + -.")
    settings = typed(config, resolve_all=False)
    if settings.task.name.trains:
        _check_monitors(settings)


def _check_monitors(config: RunConfig) -> None:
    """Find the metrics that callbacks monitor; Lightning would look for them after the first validation."""
    callbacks = {name: node for name, node in config.callbacks.items() if isinstance(node, dict)}
    if not all(str(node.get("_target_", "")).startswith(KNOWN_CALLBACKS) for node in callbacks.values()):
        return
    # In a comparison the baseline has the same callbacks, and it retrieves nothing.
    scored = {0} if config.task.name is Task.compare else {0, config.retrieval.k}
    metrics = [*TRAINING_METRICS, *(f"validation/bits_per_byte/k={k}" for k in sorted(scored))]
    for name, node in callbacks.items():
        monitor = node.get("monitor")
        if monitor is not None and monitor not in metrics:
            raise ConfigurationError(
                f"callbacks.{name}.monitor={monitor} is not a metric of task={config.task.name}; there are "
                f"{', '.join(metrics)}."
            )


def _check_keys(node: Any, prefix: str) -> None:
    schema = OmegaConf.get_type(node)
    known = {entry.name for entry in fields(schema)} if is_dataclass(schema) else None
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        path = f"{prefix}{key}"
        if path == "hydra":
            continue
        if known is not None and key not in known:  # Hydra adds keys with a `+` even to a node that has a schema
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


def no_value(key: str) -> str:
    """Say that a key has no value."""
    return f"{key} has no value; give it one: {key}=..."
