"""Bits per byte: the paper's main measure, comparable between tokenizers.

Windows start on chunk boundaries, and the last target of a window of l chunks is the first token of the chunk after
them: a window has targets in l + 1 chunks.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Score(NamedTuple):
    """How well a model predicts a text, on all devices together."""

    bytes: Tensor
    """int64 []: UTF-8 bytes of the text."""
    documents: Tensor
    """int64 []: documents in the text."""
    windows: Tensor
    """int64 [W]: numbers of the windows that were scored, in any order; what only fills a rank's share has a number
    twice, with nothing scored."""
    window_nats: Tensor
    """float64 [W, l + 1]: the summed cross-entropy of the tokens of each of these windows in each of its chunks."""
    window_tokens: Tensor
    """int64 [W, l + 1]: the tokens that were predicted in each chunk of each of these windows."""
    window_hits: Tensor
    """int64 [W, l + 1]: those of them that were the most probable; [0] if that was not counted."""

    @property
    def nats(self) -> Tensor:
        """float64 []: summed cross-entropy of the tokens."""
        return self.window_nats.sum()

    @property
    def tokens(self) -> Tensor:
        """int64 []: tokens that were predicted."""
        return self.window_tokens.sum()

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
    bytes: Tensor
    documents: Tensor
    windows: list[Tensor] | Tensor
    window_nats: list[Tensor] | Tensor
    window_tokens: list[Tensor] | Tensor
    window_hits: list[Tensor] | Tensor

    def __init__(self, chunk_length: int, *, on_all_devices: bool = True) -> None:
        """Start at zero.

        Args:
            chunk_length: m, the tokens of a chunk.
            on_all_devices: Whether `compute` adds the devices up; False where each of them has scored all windows.
        """
        super().__init__(sync_on_compute=on_all_devices)
        self.chunk_length = chunk_length
        for name in ("bytes", "documents"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("windows", "window_nats", "window_tokens", "window_hits"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> "HeldOutScore":
        """Move to a device, but keep float64 when the model is converted: sums in bfloat16 would stop growing."""
        return cast("HeldOutScore", super()._apply(lambda state: fn(state).to(state.dtype), exclude_state))

    def update(
        self,
        nats: Tensor,
        mask: Tensor,
        windows: Tensor,
        num_bytes: Tensor,
        documents: Tensor,
        hits: Tensor | None = None,
    ) -> None:
        """Add scored windows.

        Args:
            nats: [B, N] cross-entropy of each token, zero where the mask is False; N is a multiple of m, or one less.
            mask: bool [B, N], True where a token was scored.
            windows: int64 [B], the numbers of the windows in the text.
            num_bytes: int64 [], bytes of the documents that are added with these windows.
            documents: int64 [], how many such documents there are.
            hits: bool [B, N], True where the scored token is the most probable; None, each time, if not counted.
        """
        self.bytes = self.bytes + num_bytes
        self.documents = self.documents + documents
        assert isinstance(self.windows, list)
        assert isinstance(self.window_nats, list)
        assert isinstance(self.window_tokens, list)
        self.windows.append(windows)
        self.window_nats.append(self._by_chunk(nats.double()))
        self.window_tokens.append(self._by_chunk(mask.long()))
        if hits is not None:
            assert isinstance(self.window_hits, list)
            self.window_hits.append(self._by_chunk((hits & mask).long()))

    def _by_chunk(self, targets: Tensor) -> Tensor:
        """Add up the targets [B, N] of each chunk, [B, N / m + 1]; the first token of a window is no target."""
        m = self.chunk_length
        return F.pad(targets, (1, -(1 + targets.shape[1]) % m)).unflatten(1, (-1, m)).sum(2)

    def compute(self) -> Score:
        """Return the score of everything added, on all devices."""
        windows = (
            _gathered(self.windows, torch.int64),
            _gathered(self.window_nats, torch.float64),
            _gathered(self.window_tokens, torch.int64),
            _gathered(self.window_hits, torch.int64),
        )
        return Score(self.bytes, self.documents, *windows)


def _gathered(batches: list[Tensor] | Tensor, dtype: torch.dtype) -> Tensor:
    """Put the windows of all batches in one tensor; torchmetrics has done so already where there are several ranks."""
    return dim_zero_cat(batches) if len(batches) else torch.zeros(0, dtype=dtype)
