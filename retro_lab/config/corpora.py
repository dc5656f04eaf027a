"""Adds the corpora that a configuration names as database or data set and does not contain."""

from collections.abc import Iterable

from omegaconf import DictConfig

from retro_lab.config.catalog import options
from retro_lab.config.explain import nearest
from retro_lab.corpus.documents import SPLITS
from retro_lab.errors import ConfigurationError


def missing_corpora(configs: Iterable[DictConfig]) -> list[str]:
    """Return overrides that add the corpora that configurations name and do not contain.

    A data set may be a part of a corpus, as in `pile/arxiv`.

    Raises:
        ConfigurationError: There is no corpus of a name.
    """
    wanted: dict[str, str] = {}
    for config in configs:
        texts = [name.partition("/")[0] for name in config.evaluation.datasets]
        named = {name: "evaluation.datasets" for name in texts if name not in SPLITS}
        named |= dict.fromkeys(config.evaluation.databases, "evaluation.databases")
        if config.database.corpus is not None:
            named[config.database.corpus] = "database.corpus"
        wanted |= {name: key for name, key in named.items() if name not in config.corpora}
    known = options("corpus")
    for name, key in wanted.items():
        if name not in known:
            near = nearest(name, known)
            guess = f"; did you mean {near}?" if near else "."
            raise ConfigurationError(
                f"{key} names the corpus {name}, which does not exist{guess} The options are {', '.join(known)}; "
                f"add files of your own as +corpus@corpora.{name}=local corpora.{name}.path=FILE."
            )
    return [f"+corpus@corpora.{name}={name}" for name in wanted]
