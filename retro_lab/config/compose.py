"""Composing a configuration: what the command line does, for notebooks and tests too."""

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig

from retro_lab.config import mount, naming, schema
from retro_lab.config.roots import config_root

CONFIG_NAME = "config"


def register() -> None:
    """Make schemas, mounted groups and resolvers known; needed once before anything is composed."""
    schema.register()
    mount.register()
    naming.register()


def compose(*overrides: str) -> DictConfig:
    """Compose a configuration from overrides such as `"+experiment=quickstart"` and `"retrieval.k=4"`."""
    register()
    with initialize_config_dir(str(config_root("conf")), version_base="1.3"):
        return hydra_compose(CONFIG_NAME, overrides=list(overrides))
