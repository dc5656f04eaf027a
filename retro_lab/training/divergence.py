"""Stops a diverged training run before its weights replace good ones."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from retro_lab.errors import DivergenceError
from retro_lab.training.progress import LOSS_INTERVAL


class DivergenceGuard(pl.Callback):
    """Stops at a non-finite loss or non-finite weights; a loss that merely jumps does not count as divergence.

    The first such step is recorded on the device, and read when the loss is read anyway. Weights are checked before
    each checkpoint: a non-finite gradient reaches them in the same step.
    """

    def __init__(self, advice: str) -> None:
        """End the error message with `advice`, on what to do."""
        self.advice = advice
        self._first: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record whether the loss is finite, and check the record every few steps.

        Raises:
            DivergenceError: A loss was not finite.
        """
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        step = torch.full((), trainer.global_step, device=loss.device)
        first = self._first if self._first is not None else torch.full_like(step, -1)
        self._first = torch.where((first < 0) & ~loss.isfinite(), step, first)
        if trainer.global_step % LOSS_INTERVAL == 0 or trainer.global_step == trainer.max_steps:
            self._look(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check losses and weights.

        Raises:
            DivergenceError: One of them is not finite.
        """
        self._look(trainer)
        local = (p.to_local() if isinstance(p, DTensor) else p for p in pl_module.parameters())
        finite = [parameter.isfinite().all() for parameter in local]
        if _on_any_rank(trainer, not bool(torch.stack(finite).all())):
            self._stop(trainer, f"weights are not finite after step {trainer.global_step:,}")

    def _look(self, trainer: pl.Trainer) -> None:
        first = -1 if self._first is None else int(self._first)
        if _on_any_rank(trainer, first >= 0):
            step = first if first >= 0 else trainer.global_step
            self._stop(trainer, f"the loss is not finite at step {step:,}")

    def _stop(self, trainer: pl.Trainer, what: str) -> None:
        raise DivergenceError(f"Training diverged: {what}. {self.advice}")


def _on_any_rank(trainer: pl.Trainer, bad: bool) -> bool:
    """Tell all ranks what one of them found; otherwise the others would wait for it forever."""
    return bool(trainer.strategy.reduce_boolean_decision(bad, all=False)) if trainer.world_size > 1 else bad
