"""The keys and values of a Hugging Face decoder, as a part of `retro_lab.model.cache.Cache`.

All keys are kept, also by layers whose attention slides, so that the last tokens can be forgotten; the base masks those
that are too far away. A token's position counts from the first real token of its sequence, so padding that is added on
the left changes no key.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache


class BaseCache:
    """The past of a base.

    Attributes:
        past: as the base takes it; keys and values are [B, heads, J, head size].
    """

    def __init__(self) -> None:
        """Start without a token."""
        self.past = DynamicCache()

    def select(self, rows: Sequence[int]) -> None:
        """Keep the sequences `rows`, in this order."""
        self._change(lambda kept: kept[torch.tensor(rows, device=kept.device)])

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`."""
        self._change(lambda kept: kept[:, :, :length])

    @classmethod
    def join(cls, caches: Sequence[Self], shifts: Sequence[int]) -> Self:
        """Return one cache of all sequences; those of a cache move by its shift, as `DecoderState` says."""
        joined = cls()
        for number in range(len(caches[0].past.layers)):
            layers = [cache.past.layers[number] for cache in caches]
            padded = (
                torch.cat([F.pad(kept, (0, 0, shift, 0)) for kept, shift in zip(part, shifts, strict=True)])
                for part in ([layer.keys for layer in layers], [layer.values for layer in layers])
            )
            joined.past.update(*padded, number)
        return joined

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        for layer in self.past.layers:
            layer.keys, layer.values = change(layer.keys), change(layer.values)
