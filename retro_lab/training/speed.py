"""What loggers are told of a training's speed: tokens per second, and model FLOPs utilization (MFU)."""

import time
from collections import deque

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from retro_lab.runs.naming import TOKENS

RATED_STEPS = 10
"""Optimizer steps that a rate is the mean of."""
PRODUCTS = 5
"""Matrix products that the peak is the best of."""
DTYPES = {
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "16-mixed": torch.float16,
    "64-true": torch.float64,
}
"""Type of the products for each training precision; float32 for others."""


class TrainingSpeed(pl.Callback):
    """Logs the training tokens, which are the x-axis of all curves, with tokens per second and MFU.

    MFU is the share of the devices' peak that the model's own FLOPs come to (Chowdhery et al. 2022, App. B). Without
    loggers nothing is measured.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: float, peak_flops: float | None) -> None:
        """Count tokens and FLOPs.

        Args:
            tokens_per_step: Tokens of an optimizer step.
            flops_per_token: FLOPs of forward and backward pass for a token.
            peak_flops: FLOP/s of one device; None measures it as training starts.
        """
        self.tokens_per_step, self.flops_per_token, self.peak_flops = tokens_per_step, flops_per_token, peak_flops
        self._ends: deque[float] = deque(maxlen=RATED_STEPS + 1)
        self._scoring = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the peak."""
        if trainer.loggers and self.peak_flops is None:
            self.peak_flops = measured_peak(pl_module.device, str(trainer.precision))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the tokens up to this step, and the rates of the last steps."""
        if not trainer.loggers:
            return
        pl_module.log(TOKENS, _exact((trainer.global_step + 1) * self.tokens_per_step))
        self._ends.append(time.monotonic())
        if len(self._ends) > 1 and self.peak_flops:
            seconds = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
            rate = self.tokens_per_step / max(seconds, 1e-9)
            pl_module.log("train/tokens_per_second", rate)
            pl_module.log("train/mfu", rate * self.flops_per_token / (self.peak_flops * trainer.world_size))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._scoring = time.monotonic()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the tokens that the scores belong to."""
        pl_module.log(TOKENS, _exact(trainer.global_step * self.tokens_per_step))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again: a rate is one of training alone."""
        took = time.monotonic() - self._scoring
        self._ends = deque((end + took for end in self._ends), maxlen=self._ends.maxlen)


def measured_peak(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of a product of large square matrices, the best of a few.

    Args:
        device: To measure.
        precision: Lightning's name of the training precision, which decides the matrices' type.
    """
    width = 1024 if device.type == "cpu" else 8192
    left, right = (torch.ones(width, width, device=device, dtype=DTYPES.get(precision, torch.float32)) for _ in "lr")
    left @ right  # the first product also loads the kernel
    fastest = min(_seconds(left, right) for _ in range(PRODUCTS))
    return 2 * width**3 / fastest


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    wait = getattr(torch, left.device.type).synchronize
    wait()
    started = time.perf_counter()
    left @ right
    wait()
    return time.perf_counter() - started


def _exact(tokens: int) -> torch.Tensor:
    """Return tokens in a type that Lightning logs as it is; float32, its own, rounds what exceeds 16 million."""
    return torch.tensor(tokens, dtype=torch.float64)
