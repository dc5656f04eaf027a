"""A training that a signal asks to stop saves its step first, and every attempt goes on with a whole step."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from tiny_training import Data, Line, Numbers, trainer
from torch import Tensor
from torch.utils.data import DataLoader

from retro_lab import preemption
from retro_lab.errors import PreemptedError
from retro_lab.training.checkpoints import CHECKPOINT, read_checkpoint, resumable
from retro_lab.training.stopping import ResumeAtStep, StopWhenAsked, leave_signals_to_us

ACCUMULATED = 3


def test_a_signal_ends_work_at_once_and_a_watching_loop_later() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(PreemptedError, match="Stopped by SIGUSR2"), preemption.handled(signal.SIGUSR2):
        os.kill(os.getpid(), signal.SIGUSR2)
    looked = []

    def look() -> None:
        with preemption.watched():
            looked.append(preemption.requested())
            os.kill(os.getpid(), signal.SIGUSR2)
            looked.append(preemption.requested())

    with preemption.handled(signal.SIGUSR2):
        with pytest.raises(PreemptedError, match="Stopped by SIGUSR2"):
            look()
        with pytest.raises(PreemptedError):
            os.kill(os.getpid(), signal.SIGUSR2)
    assert looked == [None, signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR2) == before


def test_an_error_while_watching_is_not_hidden_by_the_signal() -> None:
    def fail() -> None:
        with preemption.watched():
            os.kill(os.getpid(), signal.SIGUSR2)
            raise ZeroDivisionError

    with preemption.handled(signal.SIGUSR2), pytest.raises(ZeroDivisionError):
        fail()


def test_a_loader_worker_outlives_the_signals_but_not_its_parent() -> None:
    worker = os.fork()
    if not worker:
        preemption.outlive_signals()
        time.sleep(60)
        os._exit(0)
    time.sleep(0.2)
    for number in preemption.SIGNALS:
        os.kill(worker, number)
        time.sleep(0.1)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGTERM


class Pieces(Data):
    """Batches for gradients that are accumulated over several of them."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        assert self.trainer is not None
        return DataLoader(Numbers(self.trainer.global_step * self.trainer.accumulate_grad_batches), batch_size=None)


class Noisy(Line):
    """Draws, as dropout does, from a generator that the number of the batch seeds."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return super().training_step(batch + torch.randn(1, generator=torch.Generator().manual_seed(batch_idx)), 0)


class At(pl.Callback):
    """Does something within a batch, or the first one after it, or within a validation, once."""

    def __init__(self, batch: int, action: Callable[[pl.Trainer], object], validating: bool = False) -> None:
        self.batch, self.action, self.validating, self.done = batch, action, validating, False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, number: int) -> None:
        if not self.done and number >= self.batch and not self.validating:
            self.done = True
            self.action(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx == self.batch and self.validating:
            self.action(trainer)


def fitted(folder: Path, *callbacks: pl.Callback, accumulated: int = ACCUMULATED) -> tuple[Noisy, int]:
    """Train for 6 steps, from where the folder is; return the module and the step that it began at."""
    began: list[int] = []
    begin = pl.Callback()
    begin.on_train_start = lambda trainer, module: began.append(trainer.global_step)  # type: ignore[method-assign]
    settings = {"accumulate_grad_batches": accumulated, "val_check_interval": 2 * accumulated}
    stop = StopWhenAsked(folder / CHECKPOINT)
    fitting = trainer(folder, 6, [*callbacks, begin, ResumeAtStep(), stop], **settings)
    leave_signals_to_us(fitting)
    module = Noisy()
    with preemption.watched():
        fitting.fit(module, datamodule=Pieces(), ckpt_path=resumable(folder), weights_only=True)
    assert fitting.global_step == 6
    return module, began[0]


@pytest.mark.parametrize(("batch", "validating", "step"), [(0, 0, 1), (2, 0, 1), (3, 0, 2), (5, 1, 3), (17, 1, 6)])
def test_a_signal_stops_at_the_end_of_the_step_and_training_goes_on_to_the_same_weights(
    tmp_path: Path, batch: int, validating: int, step: int
) -> None:
    whole, _ = fitted(tmp_path / "whole")
    asked = At(batch, lambda trainer: os.kill(os.getpid(), signal.SIGTERM), bool(validating))
    with (
        preemption.handled(signal.SIGTERM),
        pytest.raises(PreemptedError, match=f"Stopped by SIGTERM after a checkpoint of step {step};") as stopped,
    ):
        fitted(tmp_path / "stopped", asked)
    assert stopped.value.exit_code == 75
    assert read_checkpoint(tmp_path / "stopped" / CHECKPOINT)["global_step"] == step
    if step < 6:
        resumed, began = fitted(tmp_path / "stopped")
        assert began == step
        assert torch.equal(resumed.layer.weight, whole.layer.weight)


class Killed(Exception):
    """Ends an attempt."""


def killed(trainer: pl.Trainer) -> None:
    raise Killed


@pytest.mark.parametrize("batch", range(6, 15))
def test_a_checkpoint_within_a_step_goes_on_from_the_start_of_that_step(tmp_path: Path, batch: int) -> None:
    """Three times, at batches whose accumulated gradients are lost; a checkpoint may be written at any of them."""
    whole, _ = fitted(tmp_path / "whole")
    for number in (batch, batch, batch + 1):
        save = At(number, lambda trainer: trainer.save_checkpoint(tmp_path / "cut" / CHECKPOINT))
        with pytest.raises(Killed):
            fitted(tmp_path / "cut", save, At(number, killed))
    resumed, _ = fitted(tmp_path / "cut")
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_a_resumed_training_does_not_write_again_what_it_has_read(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fitted(tmp_path, At(4 * ACCUMULATED, killed))
    before = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    with pytest.raises(Killed):
        fitted(tmp_path, At(5 * ACCUMULATED - 1, killed))
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == before


def test_a_training_goes_on_with_another_number_of_accumulated_batches(tmp_path: Path) -> None:
    """Each step is of as many batches as now, the first one too."""
    with pytest.raises(Killed):
        fitted(tmp_path, At(4 * ACCUMULATED, killed))
    seen: list[int] = []

    class Seen(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            seen.append(trainer.fit_loop.epoch_loop.batch_idx)

    fitted(tmp_path, Seen(), accumulated=5)
    assert seen == [24, 29]


def test_lightning_handles_no_signal(tmp_path: Path) -> None:
    """Its handlers would call collective operations at any moment; names of its own are what we set aside."""
    fitting = trainer(tmp_path, 1)
    assert hasattr(_SignalConnector, "register_signal_handlers")
    assert hasattr(type(fitting.fit_loop.epoch_loop), "_broadcast_sigterm_tensor")
    handlers = []
    leave_signals_to_us(fitting)
    before = signal.getsignal(signal.SIGTERM)
    fitting.callbacks.append(At(0, lambda trainer: handlers.append(signal.getsignal(signal.SIGTERM))))  # type: ignore[attr-defined]
    fitting.fit(Line(), datamodule=Data())
    assert handlers == [before]
    assert signal.getsignal(signal.SIGTERM) == before
