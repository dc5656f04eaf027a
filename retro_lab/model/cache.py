"""What a model remembers of the tokens that it has read, so that the next ones need no pass over all of them.

    cache = model.empty_cache()
    hidden = model(prompts, neighbors, neighbor_lengths, padding=padding, cache=cache)
    hidden = model(next_tokens, neighbors of the chunks that these tokens complete, cache=cache)

Sequences are aligned on the right: a short one begins with padding. Its chunks begin with its first real token, so that
they do not depend on the other sequences of the batch. With M = 4, and "." for padding:

    row 0    a b c d|e f g h|i j         `d` and `h` complete a chunk
    row 1    . . . a b c d|e f g         `d` does

A token that completes a chunk is the first that attends to the neighbors of the chunk, so they are found before it is
read. That token and the M - 1 after it attend to them; the next chunk is then complete.

Retrieval every s < M tokens (Wang et al. 2023) needs no chunks: `windows` says which sequences retrieve with the last M
tokens up to the first one of a call. Its neighbors are attended to as those of a chunk are, but those of the next
window take their place after s tokens. With M = 4 and s = 2:

    tokens       a b c d e f g h i
    windows      [a b c d]                 attended to by d e
                     [c d e f]             attended to by f g
                         [e f g h]         attended to by h i

A window at the beginning of a text has fewer than M tokens, and the encoder sees no more than those.

Shapes: B sequences (rows), Q next tokens, C chunks that they complete, M chunk length.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from retro_lab.model.neighbor_cache import NeighborCache


class DecoderState(Protocol):
    """The past of a decoder: our own `DecoderCache`, or that of another."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep the sequences `rows`, in this order."""

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`."""

    @classmethod
    def join(cls, caches: Sequence[Self], shifts: Sequence[int]) -> Self:
        """Return one cache of all sequences; those of a cache move by its shift to higher places.

        A negative shift leaves out as many tokens at the beginning, which are padding in all of its sequences.
        """


class Cache:
    """The past of B sequences. A model makes one by `empty_cache`, and updates it in each call.

    Attributes:
        decoder: the past of the decoder.
        neighbors: of the past, for a model with an encoder; else None.
        length: tokens read of each sequence, padding included.
        padding: tokens of padding at the beginning of each sequence; empty before the first call.
        chunk_length: M.
    """

    def __init__(
        self, chunk_length: int, decoder: DecoderState, neighbors: NeighborCache | None, *, padding_in_grid: bool
    ) -> None:
        """Start without a token.

        Args:
            chunk_length: M.
            decoder: empty.
            neighbors: empty; None for a model without an encoder.
            padding_in_grid: whether the first chunk begins with the padding of a sequence rather than behind it.
        """
        self.chunk_length, self.padding_in_grid = chunk_length, padding_in_grid
        self.decoder, self.neighbors = decoder, neighbors
        self.length = 0
        self.padding: list[int] = []
        self._padding_tensor: Tensor | None = None
        self._device: torch.device | None = None  # of the tokens

    def completed(self, count: int, padding: Sequence[int] | None = None) -> list[int]:
        """Return how many chunks of each sequence the next `count` tokens complete.

        Args:
            count: Q.
            padding: of each sequence, before the first call.
        """
        return [len(ends) for ends in self.chunk_ends(count, padding)]

    def chunk_ends(self, count: int, padding: Sequence[int] | None = None) -> list[range]:
        """Return the places, from 0 and padding included, of those of the next `count` tokens that complete a chunk."""
        m, stop, ends = self.chunk_length, self.length + count, []
        for pad in self.padding if padding is None else padding:
            last = (0 if self.padding_in_grid else pad) - 1  # the token before the first chunk
            ends.append(range(last + m * (max(0, self.length - 1 - last) // m + 1), stop, m))
        return ends

    def begin(self, tokens: Tensor, padding: Tensor | None, documents: Tensor | None) -> Tensor | None:
        """Check the next tokens [B, Q], and remember the padding.

        Returns:
            Integers [B], the padding of each sequence; None if there is none.

        Raises:
            ValueError: The call isn't one that a cache can take.
        """
        if torch.is_grad_enabled():
            raise ValueError("A model with a cache is called within torch.no_grad() or torch.inference_mode().")
        if documents is not None:
            raise ValueError("With a cache, a sequence is one document: give no documents.")
        if self.length == 0:
            self.padding = [0] * len(tokens) if padding is None else padding.tolist()
            self._device, self._padding_tensor = tokens.device, padding if any(self.padding) else None
            if not 0 <= min(self.padding) <= max(self.padding) <= tokens.shape[1]:
                raise ValueError(f"The first call of {tokens.shape[1]} tokens must hold all padding: {self.padding}.")
        elif padding is not None:
            raise ValueError("The padding is given in the first call with a cache alone.")
        if len(tokens) != len(self.padding):
            raise ValueError(f"This cache has {len(self.padding)} sequences, not {len(tokens)}.")
        return self._padding_tensor

    def select(self, rows: Sequence[int]) -> None:
        """Keep the sequences `rows`, in this order; a sequence may come more than once.

        Padding that all of them begin with is left out, unless it is a part of chunks.
        """
        self.padding = [self.padding[row] for row in rows]
        self.decoder.select(rows)
        if self.neighbors is not None:
            self.neighbors.select(rows)
        if spare := self._spare_padding:
            self.decoder = type(self.decoder).join([self.decoder], [-spare])
            if self.neighbors is not None:
                self.neighbors = type(self.neighbors).join([self.neighbors], [-spare])
            self.length -= spare
            self.padding = [pad - spare for pad in self.padding]
        self._remember_padding()

    def truncate(self, length: int) -> None:
        """Forget the tokens of all sequences after the first `length` (rejected drafts).

        Raises:
            ValueError: This would forget a token with which neighbors came, or more than M tokens in a model with an
                encoder.
        """
        if not max(self.padding, default=0) <= length <= self.length:
            raise ValueError(f"A cache of {self.length} tokens can't be cut to {length}.")
        if self.neighbors is not None:
            self.neighbors.truncate(self.length, length)
        self.decoder.truncate(length)
        self.length = length

    @classmethod
    def join(cls, caches: Sequence[Self]) -> Self:
        """Return one cache of all sequences, in order, with no more padding than the shorter ones need.

        Raises:
            ValueError: A cache has read nothing, or the padding is a part of chunks, so that it can't change.
        """
        if not all(cache.length for cache in caches):
            raise ValueError("A cache that has read nothing can't be joined to others; read a token with it first.")
        first = caches[0]
        length = max(cache.length - cache._spare_padding for cache in caches)
        shifts = [length - cache.length for cache in caches]
        if first.padding_in_grid and any(shifts):
            raise ValueError("Caches whose padding is a part of chunks can be joined only if they are equally long.")
        decoder = type(first.decoder).join([cache.decoder for cache in caches], shifts)
        of_neighbors = [cache.neighbors for cache in caches if cache.neighbors is not None]
        neighbors = type(of_neighbors[0]).join(of_neighbors, shifts) if of_neighbors else None
        joined = cls(first.chunk_length, decoder, neighbors, padding_in_grid=first.padding_in_grid)
        joined.length = length
        joined.padding = [pad + shift for cache, shift in zip(caches, shifts, strict=True) for pad in cache.padding]
        joined._device = first._device
        joined._remember_padding()
        return joined

    @property
    def _spare_padding(self) -> int:
        """Tokens at the beginning that are padding in all sequences, and no part of chunks."""
        return 0 if self.padding_in_grid else min([*self.padding, max(0, self.length - 1)])

    def _remember_padding(self) -> None:
        self._padding_tensor = torch.tensor(self.padding, device=self._device) if any(self.padding) else None
