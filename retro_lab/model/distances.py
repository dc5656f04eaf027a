"""Encodings of the distances between queries and keys: sinusoids, or rotations.

They are the same for all layers, so the model computes them once for each kind of attention. `positions.py` defines the
distance that each attention uses.
"""

import torch
from torch import Tensor

from retro_lab.model.config import ModelConfig
from retro_lab.model.positions import Projected, descending_distances, sinusoids
from retro_lab.model.rotary import Rotations, rotations

TRANSFORMER_XL, ROTARY = "transformer_xl", "rotary"
POSITIONS = (TRANSFORMER_XL, ROTARY)

Distances = Tensor | Projected | Rotations
"""Sinusoids [T, D] of all distances, in the order of `descending_distances`, which may be projected already; or
rotations of queries and keys."""


class DistanceEncoder:
    """Encodes distances for the attentions of one stream, decoder or encoder."""

    def __init__(self, model: ModelConfig, width: int, head_size: int) -> None:
        """Encode as `model.positions` says: sinusoids of the stream's width, or rotations of a head's size."""
        self.rotary, self.rotary_base = model.positions == ROTARY, model.rotary_base
        self.width, self.head_size = width, head_size

    def to_past(self, queries: int, keys: int, like: Tensor) -> Distances:
        """Distances i - j of causal attention, on the device and of the type of `like`.

        Args:
            queries: Q; the queries belong to the last Q of the J tokens.
            keys: J.
            like: Hidden states.
        """
        if self.rotary:
            return self.between(queries, keys, keys - queries, like)
        # From J - 1 to 0, and the filler -1: all distances to the past, however many of the tokens are queries.
        return self.between(keys, 1, 0, like)

    def between(self, queries: int, keys: int, offset: int, like: Tensor) -> Distances:
        """Distances `query - key + offset` of Q queries and J keys, on the device and of the type of `like`."""
        device, dtype = like.device, like.dtype
        if not self.rotary:
            return sinusoids(descending_distances(queries, keys, offset, device), self.width, dtype)
        positions = torch.arange(queries, device=device) + offset, torch.arange(keys, device=device)
        return Rotations(*(self.rotations(at, dtype) for at in positions))

    def rotations(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Rotations [2, T, A/2] of integer positions [T]."""
        return rotations(positions, self.head_size, self.rotary_base, dtype)
