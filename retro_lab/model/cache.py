"""What a model remembers of the tokens that it has read, so that the next ones need no pass over all of them.

    cache = model.empty_cache()
    hidden = model(prompts, neighbors, neighbor_lengths, padding=padding, cache=cache)
    hidden = model(next_tokens, neighbors of the chunks that these tokens complete, cache=cache)

Sequences are aligned on the right: a short one begins with padding. Its chunks begin with its first real token, so that
they do not depend on the other sequences of the batch. With M = 4, and "." for padding:

    row 0    a b c d|e f g h|i j         5 tokens completed by `h`, and so on
    row 1    . . . a b c d|e f g         one chunk, completed by `d`

Shapes: B sequences (rows), Q next tokens, C chunks that they complete, M chunk length, K neighbors, R neighbor tokens.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor


class Cache:
    """The past of B sequences. A model makes one by `empty_cache`, and updates it in each call.

    Attributes:
        length: tokens read of each sequence, padding included.
        padding: tokens of padding at the beginning of each sequence; empty before the first call.
        chunk_length: M.
    """

    def __init__(self, chunk_length: int, *, padding_in_grid: bool = False) -> None:
        """Start without a token.

        Args:
            chunk_length: M.
            padding_in_grid: whether the first chunk begins with the padding of a sequence rather than behind it.
        """
        self.chunk_length, self.padding_in_grid = chunk_length, padding_in_grid
        self.length = 0
        self.padding: list[int] = []
        self._tokens: Tensor | None = None
        self._neighbors: list[dict[int, tuple[Tensor, Tensor]]] = []

    def completed(self, count: int, padding: Sequence[int] | None = None) -> list[int]:
        """Return how many chunks of each sequence the next `count` tokens complete.

        Args:
            count: Q.
            padding: of each sequence, before the first call.
        """
        return [
            max(0, self.length + count - start) // self.chunk_length - max(0, self.length - start) // self.chunk_length
            for start in self._grid(self.padding if padding is None else padding)
        ]

    def select(self, rows: Sequence[int]) -> None:
        """Keep the sequences `rows`, in this order; a sequence may come more than once."""
        assert self._tokens is not None
        self._tokens = self._tokens[list(rows)]
        self.padding = [self.padding[row] for row in rows]
        self._neighbors = [dict(self._neighbors[row]) for row in rows]

    def truncate(self, length: int) -> None:
        """Forget the tokens of all sequences after the first `length` (rejected drafts).

        Raises:
            ValueError: This would forget a token that has completed a chunk.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"A cache of {self.length} tokens can't be cut to {length}.")
        for start in self._grid(self.padding):
            if (self.length - start) // self.chunk_length > max(0, length - start) // self.chunk_length:
                raise ValueError(
                    f"A cache of {self.length} tokens can't be cut to {length}, back over the end of a chunk."
                )
        assert self._tokens is not None
        self.length, self._tokens = length, self._tokens[:, :length]

    @classmethod
    def join(cls, caches: Sequence[Self]) -> Self:
        """Return one cache of all sequences, in order; those of shorter caches get more padding.

        Raises:
            ValueError: The padding is a part of chunks, so that it can't change.
        """
        length = max(cache.length for cache in caches)
        if caches[0].padding_in_grid and any(cache.length < length for cache in caches):
            raise ValueError("Caches whose padding is a part of chunks can be joined only if they are equally long.")
        joined = cls(caches[0].chunk_length, padding_in_grid=caches[0].padding_in_grid)
        joined.length = length
        tokens = []
        for cache in caches:
            assert cache._tokens is not None
            joined.padding += [padding + length - cache.length for padding in cache.padding]
            joined._neighbors += [dict(of_row) for of_row in cache._neighbors]
            tokens.append(torch.nn.functional.pad(cache._tokens, (length - cache.length, 0)))
        joined._tokens = torch.cat(tokens)
        return joined

    def read(
        self,
        forward: Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None], Tensor],
        tokens: Tensor,
        neighbors: Tensor | None,
        neighbor_lengths: Tensor | None,
        padding: Tensor | None,
    ) -> Tensor:
        """Read the next tokens by a pass over all."""
        if torch.is_grad_enabled():
            raise ValueError("A model with a cache is called within torch.no_grad() or torch.inference_mode().")
        if self._tokens is not None and padding is not None:
            raise ValueError("The padding is given in the first call with a cache alone.")
        if self._tokens is not None and len(tokens) != len(self.padding):
            raise ValueError(f"This cache has {len(self.padding)} sequences, not {len(tokens)}.")
        if self._tokens is None:
            self._tokens = tokens[:, :0]
            self.padding = [0] * len(tokens) if padding is None else padding.tolist()
            self._neighbors = [{} for _ in self.padding]
        if neighbors is not None and neighbors.shape[1] < max(self.completed(tokens.shape[1])):
            raise ValueError(
                f"These tokens need neighbors [{len(tokens)}, {max(self.completed(tokens.shape[1]))} or more, k, r], "
                f"not {list(neighbors.shape)}."
            )
        completed, starts = self.completed(tokens.shape[1]), list(self._grid(self.padding))
        for row, count in enumerate(completed):
            first = max(0, self.length - starts[row]) // self.chunk_length
            for i in range(count):
                if neighbors is None:
                    break
                of_chunk = neighbors[row, i]
                real = torch.full((of_chunk.shape[0],), of_chunk.shape[1]).to(of_chunk.device)
                self._neighbors[row][first + i] = (
                    of_chunk,
                    real if neighbor_lengths is None else neighbor_lengths[row, i],
                )
        self._tokens, self.length = torch.cat([self._tokens, tokens], dim=1), self.length + tokens.shape[1]
        results = []
        for row, start in enumerate(starts):
            of_row, found = self._tokens[row : row + 1, start:], self._neighbors[row]
            inside = torch.tensor([self.padding[row] - start], device=tokens.device)
            given: tuple[Tensor | None, Tensor | None] = (None, None)
            if found:
                example, real = next(iter(found.values()))
                chunks = [
                    found.get(u, (torch.zeros_like(example), torch.zeros_like(real)))
                    for u in range(of_row.shape[1] // self.chunk_length)
                ]
                given = torch.stack([one for one, _ in chunks])[None], torch.stack([one for _, one in chunks])[None]
            hidden = forward(of_row, *given, inside)[:, -tokens.shape[1] :]
            results.append(torch.nn.functional.pad(hidden, (0, 0, tokens.shape[1] - hidden.shape[1], 0)))
        return torch.cat(results)

    def _grid(self, padding: Sequence[int]) -> Sequence[int]:
        """Return the place at which the chunks of each sequence begin."""
        return [0] * len(padding) if self.padding_in_grid else padding
