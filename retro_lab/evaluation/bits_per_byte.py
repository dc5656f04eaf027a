"""Bits per byte: the paper's main measure, comparable between tokenizers."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric


class BitsPerByte(Metric):
    """Total bits that a model needs for a text over its UTF-8 bytes; sums are added up over devices."""

    full_state_update = False
    nats: Tensor
    tokens: Tensor
    bytes: Tensor
    documents: Tensor

    def __init__(self) -> None:
        """Start from nothing scored."""
        super().__init__()
        for name, dtype in (
            ("nats", torch.float64),
            ("tokens", torch.int64),
            ("bytes", torch.int64),
            ("documents", torch.int64),
        ):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> "BitsPerByte":
        """Move to a device, but stay in float64 where a model is converted: sums in bfloat16 would stop to grow."""
        return cast("BitsPerByte", super()._apply(lambda state: fn(state).to(state.dtype), exclude_state))

    def update(self, nats: Tensor, tokens: Tensor, num_bytes: Tensor, documents: Tensor) -> None:
        """Add scored text: the summed cross-entropy in nats of `tokens` tokens, and the bytes they complete."""
        self.nats += nats.double()
        self.tokens += tokens
        self.bytes += num_bytes
        self.documents += documents

    def compute(self) -> Tensor:
        """Return bits per byte."""
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Exponential of the mean cross-entropy of a token."""
        return math.exp(float(self.nats) / max(1, int(self.tokens)))
