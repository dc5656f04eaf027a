"""Whatever goes wrong at whatever moment, a training has a whole checkpoint to go on from, and knows a damaged one."""

import errno
import itertools
import os
import pickle
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import Data, Line, trainer

from retro_lab.artifacts.disk import FULL, TOO_LARGE
from retro_lab.errors import ArtifactError
from retro_lab.training.checkpoints import (
    CHECKPOINT,
    DAMAGED_NAME,
    PREVIOUS_NAME,
    DurableCheckpoints,
    read_checkpoint,
    resumable,
    write_checkpoint,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "artifacts"))
from crash_points import run_and_die


def state(number: int) -> dict[str, object]:
    """What a checkpoint of step `number` holds."""
    weights = {"model.a": torch.full((40, 3), float(number)), "model.b": torch.arange(5) + number}
    return {
        "state_dict": weights, "global_step": number, "optimizer_states": [], "lr_schedulers": [], "loops": {},
        "callbacks": {"note": "x" * number},
    }  # fmt: skip


def step_of(path: Path) -> int:
    """Read a checkpoint and see that all of it is of one step."""
    content = read_checkpoint(path)
    number: int = content["global_step"]
    assert torch.equal(content["state_dict"]["model.a"], torch.full((40, 3), float(number)))
    assert torch.equal(content["state_dict"]["model.b"], torch.arange(5) + number)
    return number


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """The second of two checkpoints."""
    path = tmp_path / CHECKPOINT
    write_checkpoint(path, state(1))
    write_checkpoint(path, state(2))
    return path


def test_the_last_two_are_kept_and_nothing_else(last: Path) -> None:
    assert names(last.parent) == ["last.ckpt", "previous.ckpt"]
    assert (step_of(last), step_of(last.with_name(PREVIOUS_NAME))) == (2, 1)
    assert torch.load(last, weights_only=True)["global_step"] == 2, "torch reads it as it is"


def test_killed_before_each_change_to_the_disk(tmp_path: Path) -> None:
    """Training goes on from the old or the new checkpoint, and the next one leaves nothing of the killed one."""
    steps = []
    for number in itertools.count():
        path = tmp_path / str(number) / CHECKPOINT
        for step in (1, 2):
            write_checkpoint(path, state(step))
        status = run_and_die(number, path.parent, lambda path=path: write_checkpoint(path, state(3)))  # type: ignore[misc]
        assert resumable(path.parents[1]) == path
        steps.append(DurableCheckpoints().load_checkpoint(path)["global_step"])
        write_checkpoint(path, state(4))
        assert (step_of(path), step_of(path.with_name(PREVIOUS_NAME))) in [(4, step) for step in (2, 3)]
        assert set(names(path.parent)) == {"last.ckpt", "previous.ckpt"}
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert steps == sorted(steps)
    assert steps[0] == 2
    assert steps[-1] == 3
    assert number >= 3


@pytest.mark.parametrize("room", [0, 1, 500, 1000])
def test_a_full_disk_keeps_the_last_good_one(last: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real limit on the size of files, which the system enforces in the same place."""
    before = {path: path.read_bytes() for path in last.parent.iterdir()}
    monkeypatch.setenv("TMPDIR", str(last.parents[1] / "elsewhere"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
    try:
        with pytest.raises(ArtifactError, match=r"the last good one is kept") as caught:
            write_checkpoint(last, state(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert TOO_LARGE in str(caught.value)
    assert str(last) in str(caught.value)
    assert {path: path.read_bytes() for path in last.parent.iterdir()} == before
    write_checkpoint(last, state(3))
    assert step_of(last) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_of_the_system_is_a_sentence(
    last: Path, number: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
        with pytest.raises(ArtifactError, match="checkpoint") as caught:
            write_checkpoint(last, state(3))
    assert (FULL in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert names(last.parent) == ["last.ckpt", "previous.ckpt"]
    assert step_of(last) == 2


def test_every_truncation_falls_back_with_a_notice(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = last.read_bytes()
    for length in {0, 1, len(whole) - 1, *range(2, len(whole), 97)}:
        last.write_bytes(whole[:length])
        assert DurableCheckpoints().load_checkpoint(last)["global_step"] == 1, length
        said = " ".join(capsys.readouterr().err.split())
        assert f"{last} is not a whole checkpoint" in said
        assert PREVIOUS_NAME in said
        assert names(last.parent) == [DAMAGED_NAME, PREVIOUS_NAME]
    # The damaged one may not take the place of the whole one.
    write_checkpoint(last, state(3))
    write_checkpoint(last, state(4))
    assert step_of(last.with_name(PREVIOUS_NAME)) == 3


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_changes_nothing(
    place: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("flipped") / CHECKPOINT
    write_checkpoint(path, state(2))
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with suppress(ArtifactError):
        assert step_of(path) == 2


def test_a_flipped_bit_of_a_weight_is_found(last: Path) -> None:
    content = last.read_bytes()
    weights = torch.full((40, 3), 2.0).numpy().tobytes()
    changed = content.replace(weights, weights[:100] + bytes([weights[100] ^ 1]) + weights[101:])
    assert changed != content
    last.write_bytes(changed)
    assert torch.load(last, weights_only=True)["global_step"] == 2, "torch itself does not look"
    with pytest.raises(ArtifactError, match="not a whole checkpoint"):
        read_checkpoint(last)
    assert DurableCheckpoints().load_checkpoint(last)["global_step"] == 1


class Foreign:
    """What no checkpoint of ours holds."""


@pytest.mark.parametrize("kind", ["garbage", "pickle", "object", "weights", "list"])
def test_foreign_files_are_refused_by_name(last: Path, kind: str) -> None:
    if kind == "garbage":
        last.write_bytes(bytes(range(256)) * 20)
    elif kind == "pickle":
        last.write_bytes(pickle.dumps(Foreign()))
    elif kind == "object":
        torch.save({"state_dict": Foreign()}, last)
    elif kind == "weights":
        torch.save({"state_dict": {"a": torch.ones(1)}}, last)
    else:
        torch.save([1, 2], last)
    if kind == "weights":  # enough to start another model from, and not to go on from
        assert read_checkpoint(last)["state_dict"].keys() == {"a"}
    else:
        with pytest.raises(ArtifactError, match=r"last\.ckpt is not a whole checkpoint"):
            read_checkpoint(last)
    previous = last.with_name(PREVIOUS_NAME)
    whole = previous.read_bytes()
    previous.write_bytes(whole[:100])
    with pytest.raises(ArtifactError, match=r"last\.ckpt .*previous\.ckpt .*Delete"):
        DurableCheckpoints().load_checkpoint(last)
    assert names(last.parent) == ["last.ckpt", "previous.ckpt"], "nothing is moved where nothing is whole"
    previous.write_bytes(whole)
    assert DurableCheckpoints().load_checkpoint(last)["global_step"] == 1


def test_a_single_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    write_checkpoint(path, state(1))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ArtifactError, match=r"last\.ckpt is not a whole checkpoint"):
        DurableCheckpoints().load_checkpoint(path)


@pytest.mark.parametrize("extra", [{"save_last": True}, {"save_last": "link"}, {"monitor": "train/loss"}])
def test_callbacks_of_the_user_work_beside_ours(tmp_path: Path, extra: dict[str, object]) -> None:
    """Their files come and go as they ask for, in the same folder."""
    theirs = pl.callbacks.ModelCheckpoint(
        dirpath=tmp_path / "checkpoints", filename="best-{step}", every_n_train_steps=1, save_top_k=1, **extra
    )
    fitting = trainer(tmp_path, 5, [theirs])
    fitting.fit(Line(), datamodule=Data())
    fitting.save_checkpoint(tmp_path / CHECKPOINT)
    best = [name for name in names(tmp_path) if name.startswith("best")]
    assert len(best) == 1
    assert read_checkpoint(tmp_path / "checkpoints" / best[0])["global_step"] <= 5
    assert read_checkpoint(tmp_path / CHECKPOINT)["global_step"] == 5
    assert set(names(tmp_path)) == {"last.ckpt", "previous.ckpt", *best}


def test_training_goes_on_from_the_previous_checkpoint_to_the_same_weights(tmp_path: Path) -> None:
    whole, resumed = Line(), Line()
    trainer(tmp_path / "whole", 7).fit(whole, datamodule=Data())
    trainer(tmp_path / "cut", 5).fit(Line(), datamodule=Data())
    last = tmp_path / "cut" / CHECKPOINT
    assert read_checkpoint(last)["global_step"] == 4
    last.write_bytes(last.read_bytes()[:-200])
    second = trainer(tmp_path / "cut", 7)
    second.fit(resumed, datamodule=Data(), ckpt_path=resumable(tmp_path / "cut"), weights_only=True)
    assert second.global_step == 7
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    last.unlink()  # killed between the two renames
    third = trainer(tmp_path / "cut", 7)
    third.fit(resumed, datamodule=Data(), ckpt_path=resumable(tmp_path / "cut"), weights_only=True)
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
