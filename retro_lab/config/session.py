"""Registers what this laboratory adds to Hydra, and composes configurations from overrides."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from retro_lab.config import mount, resolvers
from retro_lab.config.roots import config_root

CONFIG_NAME = "config"

Assemble = Callable[[Sequence[str]], DictConfig]


def register() -> None:
    """Make schemas, mounted groups and resolvers known; needed once before anything is composed."""
    mount.register()
    resolvers.register()


@contextmanager
def session() -> Iterator[Assemble]:
    """Yield a function that composes overrides into a configuration, Hydra's own `hydra` node included."""
    register()
    # Hydra can be initialized only once: within another session or a run, use the one that is active.
    started = GlobalHydra.instance().is_initialized()
    with nullcontext() if started else initialize_config_dir(str(config_root("conf")), version_base="1.3"):
        yield lambda overrides: hydra_compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)
