"""Configuration of batches, computation, optimizer, schedule and initial weights: the groups of the same names."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from retro_lab.ranges import DECAY, DROPPED, NOT_NEGATIVE, POSITIVE, RATIO, check_ranges


class Backbone(StrEnum):
    """Whose decoder a model has."""

    own = "own"
    hf = "hf"


class Init(StrEnum):
    """Where the initial weights come from."""

    scratch = "scratch"
    retrofit = "retrofit"


SHORT_PRECISIONS = {"None": "32-true", "32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true"}
"""Short names that Lightning accepts for some precisions."""


def full_precision(given: Any) -> str:
    """Return Lightning's full name for a value of `trainer.precision`."""
    return SHORT_PRECISIONS.get(str(given), str(given))


@dataclass(kw_only=True)
class DataConfig:
    """Shape and order of the training batches."""

    sequence_length: int = 2048
    """Tokens in a training sequence: the paper's n, a multiple of `model.chunk_length`."""
    batch_size: int = 256
    """Sequences in one optimizer step, over all devices; the number of devices does not change it."""
    micro_batch_size: int | None = None
    """Most sequences that a device holds at a time: it takes its share of a batch in as few equal pieces as possible,
    and accumulates their gradients. null takes the share at once."""
    overfit_batches: int | None = None
    """Train only on the first N batches, again and again (`debug=overfit` sets 1); null trains on all the text."""
    neighbor_dropout: float = 0.0
    """Share of the training sequences that see no neighbors, so that RETRO[Off] is trained as well and stays near the
    baseline. Not in the paper."""
    workers: int = 0
    """Processes that assemble batches; 0 assembles them in the training process."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(
            "data",
            self,
            sequence_length=POSITIVE,
            batch_size=POSITIVE,
            micro_batch_size=POSITIVE,
            overfit_batches=POSITIVE,
            neighbor_dropout=DROPPED,
            workers=NOT_NEGATIVE,
        )

    @property
    def tokens_per_step(self) -> int:
        """Token positions, padding included, in one optimizer step."""
        return self.sequence_length * self.batch_size


@dataclass(kw_only=True)
class ComputeConfig:
    """How the training step is computed. These settings change neither the result nor the checkpoints."""

    compile: bool = False
    """Fuse the forward and backward pass with torch.compile: faster steps after minutes of compilation. Needs g++."""
    checkpoint_activations: bool = False
    """Keep only the input of each block for the backward pass, and recompute the block there: a fraction of the memory
    for about a third more time."""
    peak_flops: float | None = None
    """FLOP/s of one device, which the logged model FLOPs utilization (MFU) is a share of; null measures a product of
    large matrices in the training precision."""

    def __post_init__(self) -> None:
        """Check the range."""
        check_ranges("compute", self, peak_flops=POSITIVE)


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW (Borgeaud et al. 2022, App. C.1)."""

    _target_: str = "torch.optim.AdamW"
    """Class of the optimizer."""
    _partial_: bool = True
    """The model's parameters are passed in when training begins."""
    lr: float = 2e-4
    """Peak learning rate: 2e-4, and 1e-4 for the 7.5B model (Table 10)."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of the moments. The paper states them for WikiText-103 only (Table 11)."""
    eps: float = 1e-8
    """Term that keeps the denominator from zero. The paper states it for WikiText-103 only (Table 11)."""
    weight_decay: float = 0.1
    """Weight decay of matrices; norm gains and position biases have none. Not stated in the paper."""
    fused: bool = True
    """Update the weights in one fused kernel."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges("optimizer", self, lr=POSITIVE, betas=DECAY, eps=POSITIVE, weight_decay=NOT_NEGATIVE)


@dataclass(kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then one cosine cycle over all training tokens (App. C.1)."""

    tokens: float = 419_430_400_000
    """Tokens to train on."""
    warmup_steps: int = 750
    """Optimizer steps from `warmup_start` to the peak learning rate."""
    warmup_start: float = 1e-7
    """Learning rate of the first step."""
    final_ratio: float = 0.1
    """Final learning rate as a share of the peak."""
    gradient_clip: float = 1.0
    """Largest allowed norm of the gradient. Not stated in the paper."""
    max_skipped_steps: int = 10
    """Steps in a row whose loss or gradient is not finite, after which training stops. Each is skipped."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(
            "schedule",
            self,
            tokens=POSITIVE,
            warmup_steps=NOT_NEGATIVE,
            warmup_start=NOT_NEGATIVE,
            final_ratio=RATIO,
            gradient_clip=NOT_NEGATIVE,
            max_skipped_steps=POSITIVE,
        )


@dataclass(kw_only=True)
class InitConfig:
    """Where the initial weights come from."""

    name: Init
    """`scratch`, or `retrofit`: a trained baseline, with new weights for retrieval (Sec. 4.2)."""
    checkpoint: str | None = None
    """Baseline that `retrofit` starts from: the folder of a trained model, or a checkpoint of its training; null takes
    the baseline of the same run."""
    frozen: bool = True
    """Whether `retrofit` trains only the new weights, as the paper does; false trains all weights, as InstructRetro
    does."""

    @property
    def freezes(self) -> bool:
        """Whether a RETRO's decoder keeps the weights that it starts from."""
        return self.name is Init.retrofit and self.frozen


@dataclass(kw_only=True)
class BackboneConfig:
    """Whose decoder a model has."""

    name: Backbone = Backbone.own
    """`own`, the paper's decoder, or `hf`, a pretrained one that `transformers` reads (RETROfit)."""
    model: str | None = None
    """For `hf`: name on the Hugging Face hub, a folder, or a .gguf file."""
    revision: str | None = None
    """Commit, tag or branch on the hub; null is the main branch."""
    save_base: bool = False
    """Save the base's weights with the new ones, so that the run's folder opens by itself; false saves its checksum
    alone. A base that is trained (`init.frozen=false`) is saved in any case."""
