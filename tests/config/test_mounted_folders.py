"""`experiment` and `sweep` come from folders of their own, the user's before the shipped ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from retro_lab.config import roots
from retro_lab.config.catalog import describe, options
from retro_lab.config.compose import compose
from retro_lab.config.roots import config_root
from retro_lab.config.session import session

Write = Callable[[str, str], Path]


def test_the_users_own_experiment_comes_first(write: Write) -> None:
    shipped = compose(["+experiment=quickstart"])
    write("experiments/quickstart.yaml", "# Mine.\nseed: 7\n")
    mine = compose(["+experiment=quickstart"])
    assert (shipped.seed, mine.seed) == (0, 7)
    assert mine.data.sequence_length != shipped.data.sequence_length


def test_shipped_experiments_are_found_beside_the_users_own(write: Write) -> None:
    write("experiments/mine.yaml", "seed: 7\n")
    assert compose(["+experiment=quickstart"]).size.name == "tiny"
    assert {"mine", "quickstart"} <= set(options("experiment"))


def test_an_experiment_extends_another(write: Write) -> None:
    write("experiments/mine.yaml", "defaults: [/experiment/quickstart, override /size: 172m]\nretrieval: {k: 3}\n")
    config = compose(["+experiment=mine"])
    quickstart = compose(["+experiment=quickstart"])
    assert (config.retrieval.k, config.size.name) == (3, "172m")
    assert config.data == quickstart.data


PACKAGE = "# @package _global_\n"


@pytest.mark.parametrize("header", [f"{PACKAGE}# Mine.\n", f"# Mine.\n{PACKAGE}", "# Mine.\n", ""])
def test_the_package_header_may_stand_anywhere_or_be_left_out(header: str, write: Write) -> None:
    path = write("experiments/mine.yaml", f"{header}retrieval:\n  k: 3\n")
    assert compose(["+experiment=mine"]).retrieval.k == 3
    assert describe(path) == ("Mine." if header else "")


def test_an_empty_experiment_changes_nothing(write: Write) -> None:
    write("experiments/mine.yaml", "")
    with session() as assemble:
        assert assemble(["+experiment=mine"]).schedule == assemble([]).schedule


@pytest.mark.parametrize("spelling", ["experiment", "+experiment", "++experiment"])
def test_the_plus_sign_may_be_left_out(spelling: str) -> None:
    assert compose([f"{spelling}=quickstart"]) == compose(["+experiment=quickstart"])


def test_a_wheel_carries_the_configuration_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_root("conf").parent == roots.PACKAGE.parent
    packaged = tmp_path / "retro_lab" / "_configs" / "conf"
    packaged.mkdir(parents=True)
    monkeypatch.setattr(roots, "PACKAGE", tmp_path / "retro_lab")
    assert config_root("conf") == packaged
    assert config_root("sweeps") == tmp_path / "sweeps"
