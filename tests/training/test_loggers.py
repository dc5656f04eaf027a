"""Loggers: a tracker that cannot be reached costs no training."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from retro_lab.errors import ConfigurationError
from retro_lab.training.loggers import WANDB_ID_NAME, build_loggers, describe_run, finish_loggers


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """W&B's logger online, on a machine without a key."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    yield {
        "_target_": "pytorch_lightning.loggers.WandbLogger",
        "save_dir": str(tmp_path),
        "project": "retro_lab",
        "name": "mine",
        "offline": False,
    }
    wandb.finish()


def logged_offline(node: dict[str, Any], folder: Path) -> bool:
    """Build the logger, log a value, and tell whether W&B kept it offline under the folder's id."""
    loggers = build_loggers([node], folder)
    loggers[0].log_metrics({"loss": 1.0}, step=1)
    assert loggers[0].experiment.offline
    finish_loggers(loggers)
    assert wandb.run is None
    name = (folder / WANDB_ID_NAME).read_text(encoding="utf-8")
    return len([*Path(node["save_dir"]).glob(f"wandb/offline-run-*-{name}/run-{name}.wandb")]) == 1


def test_without_a_key_wandb_goes_on_offline(node, tmp_path, capfd) -> None:
    node["log_model"] = "all"
    assert logged_offline(node, tmp_path / "retro")
    said = capfd.readouterr().err
    assert [line.split()[0] for line in said.splitlines()] == ["W&B"], said
    assert "cannot upload (there is no key; `wandb login` asks for one); continuing offline" in said


@pytest.mark.parametrize(
    "error", [wandb.errors.CommError("Run initialization has timed out."), wandb.errors.UsageError("no\npermission")]
)
def test_a_wandb_that_refuses_the_run_goes_on_offline(node, tmp_path, capfd, monkeypatch, error) -> None:
    real = wandb.init

    def init(**settings: object) -> object:
        if os.environ["WANDB_MODE"] == "online":
            raise error
        return real(**settings)

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", init)
    assert logged_offline(node, tmp_path / "retro")
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1, said
    assert f"({' '.join(str(error).split()).rstrip('.')}); continuing offline" in said


def test_a_wandb_that_cannot_be_reached_goes_on_offline(node, tmp_path, capfd, monkeypatch) -> None:
    def login(**_: object) -> bool:
        raise wandb.errors.AuthenticationError("nobody answers")

    monkeypatch.setattr(wandb, "login", login)
    assert logged_offline(node, tmp_path / "retro")
    assert "cannot upload (nobody answers); continuing offline" in capfd.readouterr().err


def test_offline_wins_over_the_environment_and_asks_for_no_key(node, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(wandb, "login", lambda **_: pytest.fail("it logs in"))
    node["offline"] = True
    assert logged_offline(node, tmp_path / "retro")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("preempted", [False, True])
def test_a_wandb_that_breaks_off_costs_no_training(node, tmp_path, capfd, monkeypatch, preempted) -> None:
    node["offline"] = True
    loggers = build_loggers([node], tmp_path / "retro")

    def broken(*_: object, **__: object) -> None:
        raise ConnectionResetError("the service went away")

    with monkeypatch.context() as patched:
        patched.setattr(wandb.Run, "log", broken)
        patched.setattr(wandb, "finish", broken)
        for step in range(3):
            loggers[0].log_metrics({"loss": 1.0}, step=step)
        finish_loggers(loggers, preempted=preempted)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2, said  # one for the logging, and one for the end
    assert all("stopped logging (the service went away)" in line for line in said)


def test_a_project_that_wandb_refuses_is_told_before_the_training(node, tmp_path) -> None:
    node |= {"offline": True, "project": "a/b"}
    with pytest.raises(ConfigurationError, match=r"W&B cannot log \(.*a/b.*\); fix logger\.wandb"):
        build_loggers([node], tmp_path / "retro")


def test_a_run_that_failed_is_not_gone_on_with_by_the_next(node, tmp_path) -> None:
    node["offline"] = True
    [failed], [following] = (build_loggers([node], tmp_path / name) for name in ("failed", "following"))
    ids = [(tmp_path / name / WANDB_ID_NAME).read_text(encoding="utf-8") for name in ("failed", "following")]
    assert [failed.experiment.id, following.experiment.id] == ids
    assert wandb.run is following.experiment
    finish_loggers([following])


def test_trackio_holds_a_run_that_a_resumed_training_continues(tmp_path, monkeypatch, capfd) -> None:
    """Read back from the database that `trackio show` reads."""
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    node = {
        "_target_": "retro_lab.training.trackio_logger.TrackioLogger",
        "project": "mine",
        "name": "whole",
        "group": "sweep",
    }
    for step in (1, 2):
        loggers = build_loggers([node], tmp_path / "retro")
        describe_run(loggers, {"optimizer": {"lr": 0.1}, "paths": {"outputs": "secret"}}, {"model": "retro"})
        loggers[0].log_metrics({"train/loss": 1 / step}, step=step)
        finish_loggers(loggers)
    assert SQLiteStorage.get_runs("mine") == ["whole/retro"]
    rows = SQLiteStorage.get_logs("mine", "whole/retro")
    assert [(row["step"], row["train/loss"]) for row in rows] == [(1, 1.0), (2, 0.5)]
    config = SQLiteStorage.get_run_config("mine", "whole/retro")
    assert config["optimizer"] == {"lr": 0.1}
    assert config["run"] == {"model": "retro"}
    assert "paths" not in config
    assert capfd.readouterr().out == ""
