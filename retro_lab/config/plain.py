"""Plain Python values from configuration nodes."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from retro_lab.errors import ConfigurationError


def plain(node: DictConfig) -> dict[str, Any]:
    """Return a node as dictionaries, lists and scalars, interpolations resolved.

    Raises:
        ConfigurationError: A value that must be given is not.
    """
    try:
        content = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigurationError(no_value(str(error.full_key))) from error
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


def no_value(key: str) -> str:
    """Say that a key has no value."""
    return f"{key} has no value; give it one, as in {key}=..."
