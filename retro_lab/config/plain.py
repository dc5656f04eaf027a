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
        raise ConfigurationError(f"{error.full_key} has no value; give it one, as in {error.full_key}=...") from error
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]
