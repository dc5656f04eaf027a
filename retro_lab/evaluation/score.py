"""Bits per byte: the paper's main measure, comparable between tokenizers."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torchmetrics import Metric


class Score(NamedTuple):
    """How well a model predicts a text, summed over all devices."""

    nats: Tensor
    """float64 []: summed cross-entropy of the tokens."""
    tokens: Tensor
    """int64 []: tokens that were predicted."""
    bytes: Tensor
    """int64 []: UTF-8 bytes of the text."""
    documents: Tensor
    """int64 []: documents in the text."""

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for the text, divided by the text's bytes."""
        return float(self.nats) / math.log(2) / int(self.bytes) if self.bytes else math.nan

    @property
    def perplexity(self) -> float:
        """Exponential of the mean cross-entropy of a token."""
        return float(torch.exp(self.nats / self.tokens))


class HeldOutScore(Metric):
    """Sums a model's cross-entropy on a text over batches and devices.

    The states hold one device's counts until `compute` sums them over devices, so read only what `compute` returns.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor
    bytes: Tensor
    documents: Tensor

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("tokens", "bytes", "documents"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> "HeldOutScore":
        """Move to a device, but keep float64 when the model is converted: sums in bfloat16 would stop growing."""
        return cast("HeldOutScore", super()._apply(lambda state: fn(state).to(state.dtype), exclude_state))

    def update(self, nats: Tensor, tokens: Tensor, num_bytes: Tensor, documents: Tensor) -> None:
        """Add scored text: the summed cross-entropy of `tokens` tokens in nats, and the bytes they complete."""
        self.nats = self.nats + nats.double()
        self.tokens = self.tokens + tokens
        self.bytes = self.bytes + num_bytes
        self.documents = self.documents + documents

    def compute(self) -> Score:
        """Return the score of everything added, on all devices."""
        return Score(self.nats, self.tokens, self.bytes, self.documents)
