"""The blocks around attention: the residual connection with its norm, and the feed-forward network.

Norms come before each block ("pre-norm"); the paper names RMSNorm but not its place. Linear layers have no bias.

Shapes: D width, F inner width of the feed-forward network.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retro_lab.model.kernels.memory_efficient import RMSNorm, project_activated

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class Branch(nn.Module):
    """dropout(block(norm(x))): what a block adds to the residual stream x.

    Attributes:
        checkpointed: whether only x is kept for the backward pass, which then recomputes the block.
    """

    def __init__(self, block: nn.Module, width: int, norm_eps: float, dropout: float) -> None:
        """Wrap a block.

        Args:
            block: module that maps [..., D], and further inputs by keyword, to [..., D].
            width: D.
            norm_eps: epsilon of RMSNorm.
            dropout: probability of dropping an entry of the block's output in training.
        """
        super().__init__()
        self.norm = RMSNorm(width, eps=norm_eps)
        self.block = block
        self.dropout = nn.Dropout(dropout)
        self.checkpointed = False

    def forward(self, hidden: Tensor, **inputs: Any) -> Tensor:
        """Map [..., D] to [..., D]; `inputs` go to the block."""
        if self.checkpointed and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(partial(self.compute, **inputs), hidden, use_reentrant=False))
        return self.compute(hidden, **inputs)

    def compute(self, hidden: Tensor, /, **inputs: Any) -> Tensor:
        """Do the work of `forward`, which a compiled function may take the place of."""
        return cast("Tensor", self.dropout(self.block(self.norm(hidden), **inputs)))


class Residual(Branch):
    """x + dropout(block(norm(x)))."""

    def compute(self, hidden: Tensor, /, **inputs: Any) -> Tensor:
        """Add the branch to the residual stream."""
        return hidden + super().compute(hidden, **inputs)


class FeedForward(nn.Module):
    """The paper's FFW: two linear layers with a non-linearity between them.

    A gated variant, which has a third matrix, would not give the parameter counts of Table 2.
    """

    def __init__(self, width: int, inner_width: int, activation: str) -> None:
        """Create the two layers.

        Args:
            width: D.
            inner_width: F.
            activation: key of `ACTIVATIONS`.
        """
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.input = nn.Linear(width, inner_width, bias=False)
        self.output = nn.Linear(inner_width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return project_activated(self.input(hidden), self.output.weight, self.activation)
