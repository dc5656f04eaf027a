"""Keys and values of the decoder's self-attention, in buffers that double when they are full.

Positions are relative, so the place of a token is its column, padding included. Rotary keys are rotated once, when they
enter. The projected sinusoids of Transformer-XL are computed once for each size of the buffers, and a call reads the
columns that it needs.

Shapes: H heads, B sequences, Q next tokens, J tokens with them, T capacity, D width, A head size.
"""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from retro_lab.model.distances import DistanceEncoder, Distances
from retro_lab.model.positions import Projected, RelativePositions
from retro_lab.model.rotary import Rotations, rotate

SMALLEST = 64
"""Tokens that the first buffers hold."""


class LayerCache:
    """The past of one layer."""

    def __init__(self) -> None:
        """Start without a token."""
        self.length = 0
        self.buffer: Tensor | None = None  # [2, H, B, 1, T, A]
        self._position: Tensor | None = None  # R s(d), [H, A, T + 1]

    def extend(
        self, key: Tensor, value: Tensor, distances: Distances, positions: RelativePositions | None
    ) -> tuple[Tensor, Tensor, Distances]:
        """Append the next tokens.

        Args:
            key: [H, B, 1, Q, A].
            value: [H, B, 1, Q, A].
            distances: as `DecoderCache.distances` returns them.
            positions: of the attention; None for rotations.

        Returns:
            Keys and values [H, B, 1, J, A] of all tokens, and the distances from the next ones to them.
        """
        if isinstance(distances, Rotations) and distances.key is not None:
            key, distances = rotate(key, distances.key), Rotations(distances.query, None)
        start, stop = self.length, self.length + key.shape[3]
        if self.buffer is None or stop > self.buffer.shape[4]:
            buffer = key.new_empty(2, *key.shape[:3], capacity_for(stop), key.shape[4])
            if self.buffer is not None:
                buffer[..., :start, :] = self.buffer[..., :start, :]
            self.buffer = buffer
        self.buffer[0, ..., start:stop, :] = key
        self.buffer[1, ..., start:stop, :] = value
        self.length = stop
        if isinstance(distances, Tensor) and positions is not None:
            if self._position is None or self._position.shape[2] != len(distances):
                self._position = positions.projected(distances)
            distances = Projected(self._position[..., len(distances) - stop - 1 :])
        return self.buffer[0, ..., :stop, :], self.buffer[1, ..., :stop, :], distances


class DecoderCache:
    """The past of all layers."""

    def __init__(self, distances: DistanceEncoder, layers: int) -> None:
        """Start without a token.

        Args:
            distances: of the decoder.
            layers: how many there are.
        """
        self._encoder = distances
        self.layers = [LayerCache() for _ in range(layers)]
        self._table: Distances | None = None
        self._capacity = 0

    def distances(self, count: int, like: Tensor) -> Distances:
        """Return what `LayerCache.extend` needs to know of the distances of the next `count` tokens.

        Returns:
            Sinusoids [T + 1, D] of all distances from T - 1 to 0, and of the filler -1; or rotations of these tokens.
        """
        start, stop = self.layers[0].length, self.layers[0].length + count
        if self._table is None or stop > self._capacity:
            self._capacity = capacity_for(stop)
            self._table = self._encoder.to_past(self._capacity, self._capacity, like)
        if isinstance(self._table, Rotations):
            of_next = self._table.query[:, start:stop]
            return Rotations(of_next, of_next)
        return self._table

    def select(self, rows: Sequence[int]) -> None:
        """Keep the sequences `rows`, in this order."""
        for layer in self.layers:
            if layer.buffer is not None:
                layer.buffer = layer.buffer[:, :, torch.tensor(rows, device=layer.buffer.device)]

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`."""
        for layer in self.layers:
            layer.length = length

    @classmethod
    def join(cls, caches: Sequence[Self], shifts: Sequence[int]) -> Self:
        """Return one cache of all sequences; those of a cache move by its shift, as `DecoderState` says."""
        joined = cls(caches[0]._encoder, len(caches[0].layers))
        for number, layer in enumerate(joined.layers):
            layers = [cache.layers[number] for cache in caches]
            layer.length = layers[0].length + shifts[0]
            parts = []
            for part, shift in zip(layers, shifts, strict=True):
                assert part.buffer is not None
                key, value = part.buffer[..., : part.length, :]
                if shift and joined._encoder.rotary:
                    key = rotate(key, joined._encoder.rotations(torch.tensor([shift], device=key.device), key.dtype))
                room = capacity_for(layer.length) - layer.length
                parts.append(F.pad(torch.stack([key, value]), (0, 0, shift, room)))
            layer.buffer = torch.cat(parts, dim=2)
        return joined


def capacity_for(length: int) -> int:
    """Return the smallest size of a buffer, a power of two, that holds `length` tokens."""
    return max(SMALLEST, 1 << (length - 1).bit_length())
