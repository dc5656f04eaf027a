"""Composing a configuration: what the command line does, for notebooks and tests too."""

from collections.abc import Sequence

from omegaconf import DictConfig, open_dict

from retro_lab.config.arguments import in_order
from retro_lab.config.check import check
from retro_lab.config.explain import friendly
from retro_lab.config.session import session
from retro_lab.config.strings import as_typed


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a configuration from overrides such as `["+experiment=quickstart", "retrieval.k=4"]`.

    Raises:
        ConfigurationError: An override or a configuration file is wrong, or a value that must be given is not.
    """
    with friendly(overrides), session() as assemble:
        config = assemble(as_typed(in_order(overrides)))
        check(config)
    with open_dict(config):
        del config["hydra"]
    return config
