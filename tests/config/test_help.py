"""`--help` is made from what there is."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig

from retro_lab.config.catalog import all_settings, groups, options
from retro_lab.config.help import group_help, help_text
from retro_lab.config.session import session
from retro_lab.errors import ConfigurationError

CommandLine = Callable[..., int]
Write = Callable[[str, str], Path]


def test_help_lists_everything_that_can_be_chosen() -> None:
    text = help_text()
    for group in groups():
        assert all(option in text for option in options(group)), group
    assert "Train RETRO and its baseline twin" in text
    assert "_schema" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_help_lists_the_users_own_with_its_first_comment(write: Write) -> None:
    write("experiments/mine.yaml", "# @package _global_\n# What I try today.\nseed: 1\n")
    write("sweeps/grid.yaml", "# All seeds.\nhydra:\n  sweeper:\n    params:\n      seed: 1,2\n")
    text = help_text()
    assert re.search(r"mine +What I try today\.", text)
    assert "All seeds." in text


@pytest.mark.parametrize("group", groups())
def test_help_explains_every_group(group: str) -> None:
    text = group_help(group)
    assert text.startswith(f"{group}=OPTION:")
    assert "_target_" not in text or group in ("trainer", "callbacks", "logger")


def test_help_of_a_group_has_types_values_and_descriptions() -> None:
    text = group_help("retrieval")
    assert "retrieval.k: int = 2\n      Neighbors of each chunk while training." in text
    assert "corpus.path: str (must be given)" in group_help("corpus")
    assert "Settings of c4, lambada, pile, wikitext103:" in group_help("corpus")


def test_every_setting_is_explained() -> None:
    unexplained = [setting.key for setting in all_settings().values() if not setting.text and "._" not in setting.key]
    assert unexplained == []


def test_no_setting_is_hidden_by_a_method_of_the_nodes_that_hold_it() -> None:
    assert [key for key in all_settings() if hasattr(DictConfig, key.rpartition(".")[2])] == []


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_printed(flag: str, command_line: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line("+experiment=quickstart", flag) == 0
    assert "Experiments:" in capsys.readouterr().out
    assert command_line(flag, "retrieval") == 0
    assert "retrieval.k" in capsys.readouterr().out


def test_help_for_a_group_that_is_not_there(command_line: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError):
        group_help("retreival")
    assert command_line("--help", "retreival") == 2
    assert "did you mean retrieval?" in capsys.readouterr().err


@pytest.mark.parametrize("group", groups())
def test_hydra_offers_the_options_and_no_schema(group: str) -> None:
    with session():
        loader = GlobalHydra.instance().config_loader()
        offered = loader.get_group_options(group, results_filter=ObjectType.CONFIG)
    assert offered == sorted(options(group))
