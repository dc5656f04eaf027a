"""Corpora that are named as a database or a data set, brought in from their group without further overrides."""

from collections.abc import Iterable

from omegaconf import DictConfig

from retro_lab.config.catalog import options
from retro_lab.config.explain import nearest
from retro_lab.corpus.documents import SPLITS
from retro_lab.errors import ConfigurationError


def missing_corpora(configs: Iterable[DictConfig]) -> list[str]:
    """Return overrides that add the corpora which configurations name and do not have.

    Raises:
        ConfigurationError: There is no corpus of a name.
    """
    wanted: dict[str, str] = {}
    for config in configs:
        named = {name: "evaluation.datasets" for name in config.evaluation.datasets if name not in SPLITS}
        if config.database.corpus is not None:
            named[config.database.corpus] = "database.corpus"
        wanted |= {name: key for name, key in named.items() if name not in config.corpora}
    known = options("corpus")
    for name, key in wanted.items():
        if name not in known:
            near = nearest(name, known)
            guess = f"; did you mean {near}?" if near else "."
            raise ConfigurationError(
                f"{key} names {name}, and there is no such corpus{guess} The options are {', '.join(known)}; files of "
                f"your own are +corpus@corpora.{name}=local corpora.{name}.path=FILE."
            )
    return [f"+corpus@corpora.{name}={name}" for name in wanted]
