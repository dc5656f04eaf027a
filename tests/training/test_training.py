"""What surrounds training: divergence, early stops, and a curve without holes whatever was killed."""

import math
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, Timer
from tiny_training import Data, Line, trainer
from torch.utils.data import DataLoader, IterableDataset

from retro_lab.errors import ConfigurationError, DivergenceError, RetroLabError
from retro_lab.training.checkpoints import CHECKPOINT, read_checkpoint, resumable
from retro_lab.training.divergence import DivergenceGuard
from retro_lab.training.limits import INSTEAD, check_trainer_settings
from retro_lab.training.progress import LongTrainingNotice
from retro_lab.training.training import TrainingClock, ValidationCurve, fit, stopped_by


def guard(limit: int = 1) -> DivergenceGuard:
    return DivergenceGuard(limit, lambda step: [f"text {number}" for number in range(step, step + 7)], "Lower it.")


class Poisoned(Line):
    """Learns a linear map; of some steps, the loss is not finite, though its gradient is; or the other way round."""

    def __init__(self, steps: Sequence[int], poison: float | None = math.nan, fused: bool = True) -> None:
        super().__init__()
        self.steps, self.poison, self.fused = steps, poison, fused

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01, fused=self.fused)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_step not in self.steps:
            return loss
        if self.poison is None:
            return loss + 0 * (loss - loss.detach()).sqrt()  # whose gradient is 0 times infinity
        return loss + self.poison


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("poisoned", [0, 3, 4, 8])
def test_divergence_stops_before_it_is_saved(tmp_path: Path, poisoned: int, poison: float) -> None:
    """The step and its documents are named, and the last checkpoint is one of before."""
    with pytest.raises(DivergenceError, match=rf"not finite at step {poisoned + 1}, .*\. Lower it\.") as caught:
        trainer(tmp_path, 9, [guard()]).fit(Line(poisoned, poison), datamodule=Data())
    assert caught.value.exit_code == 1
    names = ", ".join(f"text {number}" for number in range(poisoned, poisoned + 5))
    assert f"the documents {names} and 2 more" in str(caught.value)
    last = tmp_path / CHECKPOINT
    assert last.is_file() == (poisoned >= 2)
    if last.is_file():
        content = read_checkpoint(last)
        assert content["global_step"] == poisoned // 2 * 2
        assert all(weight.isfinite().all() for weight in content["state_dict"].values())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("steps", [(0,), (3, 4, 6)])
@pytest.mark.parametrize("poison", [math.inf, None], ids=["loss", "gradient"])
def test_a_skipped_step_changes_nothing(
    tmp_path: Path, fused: bool, accumulated: int, steps: tuple[int, ...], poison: float | None
) -> None:
    """Weights, moments and the optimizer's count of steps are those of before it, of a loss or a gradient alone."""
    states: list[str] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *others: Any) -> None:
            states.append(repr((list(pl_module.parameters()), trainer.optimizers[0].state_dict()["state"])))

    watched = guard(3)
    fitting = trainer(tmp_path, 8, [watched, Watch()], accumulate_grad_batches=accumulated)
    fitting.fit(Poisoned(steps, poison, fused), datamodule=Data())
    assert watched.skipped == len(steps)
    at_ends = states[accumulated - 1 :: accumulated]
    same = [step for step in range(1, 8) if at_ends[step] == at_ends[step - 1]]
    assert same == [step for step in steps if step]


def test_a_row_of_skipped_steps_is_counted_over_attempts(tmp_path: Path) -> None:
    """Killed between two of them, the run stops at the same place."""
    with pytest.raises(DivergenceError, match="3 steps in a row from step 4 on"):
        trainer(tmp_path / "whole", 9, [guard(3)]).fit(Poisoned([1, 3, 4, 5]), datamodule=Data())
    first = guard(3)
    trainer(tmp_path / "cut", 4, [first]).fit(Poisoned([1, 3, 4, 5]), datamodule=Data())
    assert first.skipped == 2
    with pytest.raises(DivergenceError, match="3 steps in a row from step 4 on"):
        trainer(tmp_path / "cut", 9, [guard(3)]).fit(
            Poisoned([1, 3, 4, 5]), datamodule=Data(), ckpt_path=resumable(tmp_path / "cut"), weights_only=True
        )


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """As a gradient leaves them that is not finite though its loss is."""
    fitting, module = trainer(tmp_path, 3, [guard()]), Line()
    fitting.fit(module, datamodule=Data())
    before = (tmp_path / CHECKPOINT).read_bytes()
    with torch.no_grad():
        module.layer.bias.fill_(math.inf)
    with pytest.raises(DivergenceError, match="weights are not finite after step 3"):
        fitting.save_checkpoint(tmp_path / CHECKPOINT)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_loss_that_jumps_is_no_divergence(tmp_path: Path) -> None:
    fitting = trainer(tmp_path, 5, [guard()])
    fitting.fit(Line(3, 1e6), datamodule=Data())
    assert fitting.global_step == 5


@pytest.mark.parametrize(("callback", "name"), [(EarlyStopping, "EarlyStopping"), (Timer, "trainer.max_time")])
def test_what_stops_a_training_early_is_named(tmp_path: Path, callback: type, name: str) -> None:
    stopper = Timer({"seconds": 0}) if callback is Timer else EarlyStopping("validation", min_delta=100, patience=1)
    fitting = trainer(tmp_path, 100, [stopper])
    fitting.fit(Line(), datamodule=Data())
    assert fitting.global_step < 100
    assert stopped_by(fitting) == name


def test_a_whole_training_was_stopped_by_nothing(tmp_path: Path) -> None:
    fitting = trainer(tmp_path, 4, [EarlyStopping("validation", patience=50)])
    fitting.fit(Line(), datamodule=Data())
    assert stopped_by(fitting) is None


@pytest.mark.parametrize("key", sorted(INSTEAD))
def test_settings_that_would_make_the_record_lie_are_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"trainer\.{key}=1"):
        check_trainer_settings({key: 1})
    check_trainer_settings({key: None, "max_time": "00:01:00:00", "precision": "bf16-mixed"})


class Curve(ValidationCurve):
    """The real curve, of the tiny module's own metric."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.holds(trainer.global_step):
            value = float(pl_module.layer(torch.ones(1, 3)))
            self.points.append({"tokens": trainer.global_step, "neighbors": 0, "bits_per_byte": value})


class Killed(pl.Callback):
    """Ends the attempt right after a step, before what would follow it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


def test_the_curve_of_a_killed_run_has_no_holes(tmp_path: Path) -> None:
    """Killed between the checkpoint of a step and its validation, again and again."""
    whole = Curve(1)
    trainer(tmp_path / "whole", 9, [whole]).fit(Line(), datamodule=Data())
    for step in (2, 4, 4, 8):
        with pytest.raises(RuntimeError, match="killed"):
            trainer(tmp_path / "killed", 9, [Curve(1), Killed(step)]).fit(
                Line(), datamodule=Data(), ckpt_path=resumable(tmp_path / "killed"), weights_only=True
            )
    resumed = Curve(1)
    trainer(tmp_path / "killed", 9, [resumed]).fit(
        Line(), datamodule=Data(), ckpt_path=resumable(tmp_path / "killed"), weights_only=True
    )
    assert [point["tokens"] for point in whole.points] == [2, 4, 6, 8]
    assert resumed.points == whole.points


def test_seconds_add_up_over_attempts(tmp_path: Path) -> None:
    first = TrainingClock()
    first._started -= 1000
    trainer(tmp_path, 2, [first]).fit(Line(), datamodule=Data())
    second = TrainingClock()
    trainer(tmp_path, 4, [second]).fit(Line(), datamodule=Data(), ckpt_path=resumable(tmp_path), weights_only=True)
    assert 1000 < second.seconds < 1100


class Hanging(IterableDataset[torch.Tensor]):
    """Reads from storage that does not answer."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        time.sleep(60)
        yield torch.ones(4, 3)


class HangingData(Data):
    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(Hanging(), batch_size=None, num_workers=1, timeout=1)


def test_data_that_does_not_arrive_ends_the_attempt_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RetroLabError, match=r"No batch arrived for 600 seconds: .* data\.workers=0"):
        fit(trainer(tmp_path, 3, [Curve(1)]), Line(), HangingData(), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(("seconds", "said"), [(40_000.0, True), (1.0, False)])
def test_a_training_of_days_says_so_once_its_rate_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seconds: float, said: bool
) -> None:
    clock = count(step=seconds)  # the time that each step takes
    monkeypatch.setattr("retro_lab.training.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    trainer(tmp_path, 16, [LongTrainingNotice(tokens_per_step=80)]).fit(Line(), datamodule=Data())
    lines = [line for line in capsys.readouterr().err.splitlines() if "days" in line]
    assert len(lines) == said
