"""Training precisions: Lightning's, except those that cannot train a model or would silently become another."""

from typing import Any

import torch

from retro_lab.cost.memory import Precision
from retro_lab.errors import ConfigurationError
from retro_lab.training.config import full_precision

HALF_WITH_SCALER = "16-mixed"
PRECISIONS = {
    "32-true": Precision(4, 4),
    "bf16-mixed": Precision(4, 2),
    HALF_WITH_SCALER: Precision(4, 2),
    "bf16-true": Precision(2, 2),
    "64-true": Precision(8, 8),
}
"""Bytes of numbers for each `trainer.precision` of Lightning."""
SHARDED_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
"""Those of them that FSDP2 can train in."""
REFUSED = {
    "16-true": "would not train: float16 weights have no loss scaling, and AdamW's epsilon is 0 in float16",
    "transformer-engine": "is not supported: the model has no layers of Transformer Engine",
    "transformer-engine-float16": "is not supported: the model has no layers of Transformer Engine",
}


def checked_precision(given: Any, accelerator: str) -> str:
    """Return Lightning's full name for `trainer.precision`.

    Args:
        given: The setting: a long or short name, or a number; None is Lightning's default.
        accelerator: `trainer.accelerator`.

    Raises:
        ConfigurationError: A model cannot be trained in this precision on this accelerator.
    """
    name = full_precision(given)
    if name in REFUSED:
        raise ConfigurationError(f"trainer.precision={given} {REFUSED[name]}; use bf16-mixed or bf16-true.")
    if name not in PRECISIONS:
        raise ConfigurationError(f"trainer.precision={given} is not one of {', '.join(PRECISIONS)}.")
    if name == HALF_WITH_SCALER and on_processor(accelerator):  # Lightning would quietly train in bf16-mixed
        raise ConfigurationError(f"trainer.precision={given} needs a GPU; on a CPU use bf16-mixed or 32-true.")
    return name


def on_processor(accelerator: str) -> bool:
    """Return whether Lightning runs on the CPU for this `trainer.accelerator`."""
    found = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or (accelerator == "auto" and not found)
