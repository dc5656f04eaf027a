"""Composing a configuration: what the command line does, for notebooks and tests too."""

from collections.abc import Sequence

from retro_lab.config.arguments import in_order, with_experiment, with_prompt
from retro_lab.config.check import check, typed
from retro_lab.config.corpora import missing_corpora
from retro_lab.config.explain import explain_errors
from retro_lab.config.session import session
from retro_lab.config.strings import as_typed
from retro_lab.tasks.config import RunConfig


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """Compose a configuration from overrides such as `["+experiment=quickstart", "retrieval.k=4"]`.

    Raises:
        ConfigurationError: An override or a configuration file is wrong, or a value that must be given is not.
    """
    with explain_errors(overrides), session() as assemble:
        overrides = as_typed(in_order(with_experiment(with_prompt(overrides))))
        config = assemble([*overrides, *missing_corpora([assemble(overrides)])])
        check(config)
        return typed(config)
