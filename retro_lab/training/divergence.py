"""Skips steps that would ruin the weights, and stops a diverged training run before its weights replace good ones."""

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from retro_lab import console
from retro_lab.errors import DivergenceError
from retro_lab.training.progress import LOSS_INTERVAL

NAMED_DOCUMENTS = 5
"""Documents of a batch that an error names."""


class DivergenceGuard(pl.Callback):
    """Skips each step whose loss or gradient is not finite, and stops after too many in a row.

    A skipped step leaves weights and optimizer as they are. The schedule and the data go on: the next step has other
    text. A loss that merely jumps does not count as divergence.

    All is recorded on the device, and read when the loss is read anyway. Ranks record the same, because a rank's
    gradient that is not finite makes the reduced one so. Weights are checked before each checkpoint.
    """

    def __init__(self, limit: int, documents: Callable[[int], list[str]], advice: str) -> None:
        """Stop after `limit` steps in a row.

        Args:
            limit: 1 stops at the first.
            documents: Returns the ids of the documents in the batch of a step, from 0.
            advice: End of the error message, on what to do.
        """
        self.limit, self.documents, self.advice = limit, documents, advice
        self._loss: Tensor | float = 0.0
        self._record = torch.tensor([0, 0, 0, -1])
        """Steps skipped in all and in a row, the first of that row, and of the first row that was too long, or -1."""
        self._said = 0

    @property
    def skipped(self) -> int:
        """Steps skipped so far, over all attempts; waits for the device."""
        return int(self._record[0])

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Add up the losses of the accumulated batches."""
        self._loss = self._loss + loss.detach()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Have the optimizer skip this step if it has to, without waiting for the device where possible."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, math.inf)  # which only measures
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        bad = ~(norm.isfinite() & torch.as_tensor(self._loss, device=norm.device).isfinite())
        self._loss = 0.0
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce(bad.float(), reduce_op="sum") > 0
        self._note(bad, trainer.global_step)
        pl_module.log("train/skipped_steps", self._record[0].float())
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # in half precision the loss scaler skips such steps, and scales the loss down for them
        if getattr(optimizer, "_step_supports_amp_scaling", False) and not isinstance(parameters[0], DTensor):
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # read by the fused kernel on the device
        elif bad:
            optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the record every few steps.

        Raises:
            DivergenceError: Too many steps in a row were skipped.
        """
        if trainer.global_step % LOSS_INTERVAL == 0 or trainer.global_step == trainer.max_steps:
            self._look()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check the record and the weights.

        Raises:
            DivergenceError: Too many steps in a row were skipped, or weights are not finite.
        """
        self._look()
        local = (p.to_local() if isinstance(p, DTensor) else p for p in pl_module.parameters())
        finite = [parameter.isfinite().all() for parameter in local]
        bad = not bool(torch.stack(finite).all())
        if trainer.world_size > 1:  # otherwise the other ranks would wait forever for the one that found it
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        if bad:
            raise DivergenceError(
                f"Training diverged: weights are not finite after step {trainer.global_step:,}. {self.advice}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the record for the checkpoint."""
        return {"record": self._record.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the record from a checkpoint."""
        self._record = torch.tensor(state_dict["record"])
        self._said = self.skipped

    def _note(self, bad: Tensor, step: int) -> None:
        """Add a step, counted from 0, to the record."""
        self._record = self._record.to(bad.device)
        skipped, in_a_row, first, stop = self._record
        in_a_row = torch.where(bad, in_a_row + 1, 0)
        first = torch.where(in_a_row == 1, step, first)
        stop = torch.where((stop < 0) & (in_a_row >= self.limit), first, stop)
        self._record = torch.stack([skipped + bad, in_a_row, first, stop])

    def _look(self) -> None:
        skipped, _, first, stop = self._record.tolist()
        if stop >= 0:
            steps = f"{self.limit} steps in a row from step {stop + 1:,} on" if self.limit > 1 else f"step {stop + 1:,}"
            names = self.documents(stop)
            more = f" and {len(names) - NAMED_DOCUMENTS:,} more" if len(names) > NAMED_DOCUMENTS else ""
            raise DivergenceError(
                f"Training diverged: the loss or the gradient is not finite at {steps}, whose batch is of the "
                f"documents {', '.join(names[:NAMED_DOCUMENTS])}{more}. {self.advice}"
            )
        if skipped > self._said:
            console.status(
                "skipped",
                f"{skipped - self._said:,} steps whose loss or gradient is not finite, the last of them from step "
                f"{first + 1:,} on; {skipped:,} in all",
            )
            self._said = skipped
