"""RETROfit of a frozen baseline: its weights are in no checkpoint, and training goes on from one as if undisturbed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_that_train import train

from retro_lab.training.checkpoints import CHECKPOINT, read_checkpoint


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch_module.setenv("WORLD_SIZE", "1")
    folder = tmp_path_factory.mktemp("baseline")
    return train(folder, "auto", 2, k=0) | {"checkpoint": folder / CHECKPOINT}


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_retrofit_resumes_exactly_from_a_checkpoint_of_new_weights_alone(
    tmp_path: Path, baseline: dict[str, Any]
) -> None:
    start = baseline["checkpoint"]
    whole = train(tmp_path / "whole", "auto", 4, start=start)
    train(tmp_path / "cut", "auto", 2, start=start, save_every=1)
    saved = {name.removeprefix("model.") for name in read_checkpoint(tmp_path / "cut" / CHECKPOINT)["state_dict"]}
    assert saved == whole["weights"].keys() - baseline["weights"].keys()
    resumed = train(tmp_path / "cut", "auto", 4, start=start)
    assert resumed["losses"] == whole["losses"][2:]
    for name, weight in whole["weights"].items():
        assert torch.equal(resumed["weights"][name], weight), name
    for name, weight in baseline["weights"].items():
        assert torch.equal(resumed["weights"][name], weight), name


def test_a_retrofit_that_is_not_frozen_trains_and_saves_everything(tmp_path: Path, baseline: dict[str, Any]) -> None:
    found = train(tmp_path, "auto", 2, start=baseline["checkpoint"], frozen=False)
    assert all(not torch.equal(found["weights"][name], weight) for name, weight in baseline["weights"].items())
    saved = read_checkpoint(tmp_path / CHECKPOINT)["state_dict"]
    assert {name.removeprefix("model.") for name in saved} == found["weights"].keys()
