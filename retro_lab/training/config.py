"""Batches, computation, optimiser, schedule and starting weights: the groups of the same names."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass(kw_only=True)
class DataConfig:
    """Shape and order of the training batches."""

    sequence_length: int = 2048
    """Tokens in a training sequence: the paper's n, a multiple of `model.chunk_length`."""
    batch_size: int = 256
    """Sequences in one optimiser step, over all devices and accumulated batches."""
    overfit_batches: int | None = None
    """Train on the first so many batches again and again, as `debug=overfit` does on one; null takes all the text."""
    workers: int = 0
    """Processes that assemble batches; 0 assembles them in the training process."""


@dataclass(kw_only=True)
class ComputeConfig:
    """How the training step is computed: what it computes, and what checkpoints hold, is the same."""

    compile: bool = False
    """Fuse forward and backward pass with torch.compile: faster steps after minutes of compilation. Needs g++."""
    checkpoint_activations: bool = False
    """Keep only the input of each block for the backward pass, which then computes the block once more: a fraction of
    the memory for about a third more time."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW (Borgeaud et al. 2022, App. C.1)."""

    _target_: str = "torch.optim.AdamW"
    _partial_: bool = True
    lr: float = 2e-4
    """Largest learning rate: 2e-4, and 1e-4 for the 7.5B model (Table 10)."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of the moments; stated by the paper for WikiText-103 only (Table 11)."""
    eps: float = 1e-8
    """Stated by the paper for WikiText-103 only (Table 11)."""
    weight_decay: float = 0.1
    """On matrices; norm gains and position biases are not decayed, which the paper does not state."""
    fused: bool = True
    """One fused kernel for the whole update."""


@dataclass(kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then one cosine cycle over all training tokens (App. C.1)."""

    tokens: float = 419_430_400_000
    """Tokens to train on."""
    warmup_steps: int = 750
    """Optimiser steps from `warmup_start` to the largest learning rate."""
    warmup_start: float = 1e-7
    """Learning rate of the first step."""
    final_ratio: float = 0.1
    """Last learning rate as a share of the largest."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient. Not stated in the paper."""


@dataclass(kw_only=True)
class InitConfig:
    """Where the weights start."""

    name: str = MISSING
    """`scratch`, or `retrofit`: a trained baseline is frozen and only the retrieval weights are trained (Sec. 4.2)."""
    checkpoint: str | None = None
    """Checkpoint of the baseline that `retrofit` starts from; null takes the baseline twin of the same run."""
