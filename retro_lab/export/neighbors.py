"""The neighbors of chunks that become complete while transformers' `generate` adds tokens.

Shapes: B sequences, N tokens, M chunk length, C chunks, K neighbors, R neighbor tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from retro_lab.generation import retrieved

Retrieve = Callable[[np.ndarray], tuple[np.ndarray | Tensor, np.ndarray | Tensor]]
"""From the tokens of chunks, int64 [n, M], to what the model reads of their neighbors: tokens [n, K, R], and how many
of those are real, [n, K], 0 for a missing neighbor."""


def as_arrays(retrieve: retrieved.Retrieve) -> Retrieve:
    """Return what retrieves for our own generation, such as `searched(live, k, value)`, as `generate` takes it here."""

    def of_chunks(chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = retrieve(list(chunks))
        return np.stack([one.tokens for one in found]).astype(np.int64), np.stack([one.lengths for one in found])

    return of_chunks


def neighbors_of_new_chunks(
    tokens: Tensor,
    starts: Sequence[int],
    read: int,
    chunk_length: int,
    given: tuple[Tensor, Tensor | None] | None,
    retrieve: Retrieve | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the neighbors of the chunks that are complete, but were not after the first `read` tokens.

    Args:
        tokens: int64 [B, N].
        starts: Place of the first token of each sequence that is no padding; chunks begin there.
        read: Tokens that were read before, padding included.
        chunk_length: M.
        given: Neighbors of the first chunks of each sequence, [B, C', K, R], and the real tokens of each, [B, C', K];
            None if all are real.
        retrieve: Finds those of all other chunks; without it they have none.

    Returns:
        Neighbors [B, C, K, R] and real tokens [B, C, K]; C is the most chunks of a sequence, and those of a sequence
        with fewer come first. None if no chunk is new.

    Raises:
        ValueError: `given` and what is found differ in K or R, or what is found has another shape.
    """
    new = [range(max(0, read - start) // chunk_length, (tokens.shape[1] - start) // chunk_length) for start in starts]
    width = max(len(chunks) for chunks in new)
    if not width:
        return None, None
    known = given[0].shape[1] if given else 0
    searched = [(row, chunk) for row, chunks in enumerate(new) for chunk in chunks if chunk >= known and retrieve]
    found = None
    if searched and retrieve:
        firsts = [(row, starts[row] + chunk * chunk_length) for row, chunk in searched]
        found = _retrieved(torch.stack([tokens[row, first : first + chunk_length] for row, first in firsts]), retrieve)
    shapes = {tuple(one[0].shape[-2:]) for one in (given, found) if one}
    if len(shapes) > 1:
        raise ValueError(f"neighbors [.., k, r] and what retrieve returns differ in k or r: {sorted(shapes)}.")
    k, r = shapes.pop()
    neighbors = tokens.new_zeros(len(tokens), width, k, r)
    lengths = tokens.new_zeros(len(tokens), width, k)
    if given:
        for row, chunks in enumerate(new):
            of_row = slice(chunks.start, min(chunks.stop, known))
            count = max(0, of_row.stop - of_row.start)
            neighbors[row, :count] = given[0][row, of_row]
            lengths[row, :count] = r if given[1] is None else given[1][row, of_row]
    if found:
        for number, (row, chunk) in enumerate(searched):
            place = chunk - new[row].start
            neighbors[row, place], lengths[row, place] = found[0][number], found[1][number]
    return neighbors, lengths


def _retrieved(chunks: Tensor, retrieve: Retrieve) -> tuple[Tensor, Tensor]:
    """Search for the neighbors of chunks [n, M], equal ones once; return [n, K, R] and [n, K]."""
    different, which = chunks.unique(dim=0, return_inverse=True)
    neighbors, lengths = (torch.as_tensor(values) for values in retrieve(different.cpu().numpy()))
    n = len(different)
    if neighbors.dim() != 3 or neighbors.shape[:2] != lengths.shape or len(neighbors) != n:
        raise ValueError(
            f"retrieve was given {n} chunks, so it must return tokens [{n}, k, r] and lengths [{n}, k], not "
            f"{list(neighbors.shape)} and {list(lengths.shape)}."
        )
    return neighbors.to(chunks)[which], lengths.to(chunks)[which]
