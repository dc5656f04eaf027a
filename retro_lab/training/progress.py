"""Progress bars for training and evaluation, with rate and time left, and a notice before long training runs."""

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.trainer.states import TrainerFn

from retro_lab import console
from retro_lab.artifacts.manifest import write_json
from retro_lab.runs.folder import PROGRESS_NAME

SECONDS_PER_DAY = 86_400
MEASURED_STEPS = 10
"""Steps over which the training rate is measured."""
LOSS_INTERVAL = 10
"""Steps between reads of the loss, each of which waits for the device."""
PROGRESS_SECONDS = 5.0
"""Seconds between two writes of the progress file."""


class TokenProgress(ProgressBar):
    """One bar for a whole training run, and one for an evaluation outside training."""

    def __init__(self, tokens_per_step: int) -> None:
        """Count `tokens_per_step` tokens for each optimizer step."""
        super().__init__()
        self.tokens_per_step = tokens_per_step
        self._open = ExitStack()
        self._advance: console.Advance = _ignore
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a bar at the step where the run starts or resumes."""
        self._step = trainer.global_step
        done, total = (steps * self.tokens_per_step for steps in (self._step, trainer.max_steps))
        self._advance = self._open.enter_context(console.progress("training", "tokens", total, done))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by the optimizer step, if this batch ended one."""
        steps, self._step = trainer.global_step - self._step, trainer.global_step
        if steps:
            look = self._step % LOSS_INTERVAL == 0 or self._step == trainer.max_steps
            self._advance(
                steps * self.tokens_per_step,
                f"step {self._step:,}, loss {trainer.callback_metrics['train/loss']:.3f}" if look else None,
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a bar for an evaluation that is not part of training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            total = sum(int(count) for count in trainer.num_val_batches)
            self._advance = self._open.enter_context(console.progress("evaluating", "batches", total))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance that bar."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._advance(1, None)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar."""
        self._open.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error appears below it."""
        self._open.close()

    def disable(self) -> None:
        """Do nothing: `console.progress` shows nothing on other ranks."""

    def enable(self) -> None:
        """Do nothing, likewise."""


class ProgressFile(pl.Callback):
    """Writes step and rate into the model's folder every few seconds, for those who watch from another machine."""

    def __init__(self, tokens_per_step: int, folder: Path) -> None:
        """Count `tokens_per_step` tokens for each optimizer step; write into `folder`, which is the model's."""
        self.tokens_per_step = tokens_per_step
        self.path = folder / PROGRESS_NAME
        self._last: tuple[int, float] | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the file if the last time is long enough ago; the rate is that since then."""
        if not trainer.is_global_zero:
            return
        step, now = trainer.global_step, time.monotonic()
        if self._last is None:
            self._last = step, now
        seconds = now - self._last[1]
        if seconds < PROGRESS_SECONDS and step < trainer.max_steps:
            return
        rate = (step - self._last[0]) * self.tokens_per_step / seconds if seconds else 0.0
        self._last = step, now
        content = {"step": step, "steps": trainer.max_steps, "tokens_per_second": round(rate), "time": time.time()}
        with suppress(OSError):  # a full disk is found by the next checkpoint, which matters
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, content)


class LongTrainingNotice(pl.Callback):
    """Says how many days a training run will take, once its rate is measured, if that is more than one."""

    def __init__(self, tokens_per_step: int) -> None:
        """Count `tokens_per_step` tokens for each optimizer step."""
        self.tokens_per_step = tokens_per_step
        self._first: tuple[int, float] | None = None
        self._said = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start measuring after the first step, which may compile; print the estimate after `MEASURED_STEPS`."""
        if self._said:
            return
        if self._first is None:
            self._first = trainer.global_step, time.monotonic()
            return
        steps, seconds = trainer.global_step - self._first[0], time.monotonic() - self._first[1]
        if steps < MEASURED_STEPS:
            return
        self._said = True
        days = (trainer.max_steps - trainer.global_step) * seconds / steps / SECONDS_PER_DAY
        if days > 1:
            rate = self.tokens_per_step * steps / seconds
            console.status(
                "training",
                f"will take about {days:,.1f} days at the {rate:,.0f} tokens/s measured over {steps} steps; "
                "if stopped, the same command resumes",
            )


def _ignore(count: int, note: str | None = None) -> None:
    """Stand in for a bar that is not open."""
