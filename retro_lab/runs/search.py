"""Texts of any length searched for in a database."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from retro_lab.retrieval.live import LiveRetrieval
from retro_lab.retrieval.neighbors import NO_NEIGHBOR
from retro_lab.runs.examples import FoundPassage, passages


@dataclass(frozen=True, kw_only=True)
class Neighbor(FoundPassage):
    """A neighbor of a text that was searched in pieces."""

    query_chunk: int
    """Which of the text's chunks it is nearest to, from 0."""


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A text as it was searched."""

    chunks: list[str]
    """The text, cut into chunks."""
    neighbors: list[Neighbor]
    """Of all of its chunks, nearest first; no chunk of the database twice."""


def search(live: LiveRetrieval, texts: Sequence[str], k: int) -> list[Searched]:
    """Find the k nearest neighbors of each text.

    A text that is longer than a chunk is cut into the fewest chunks of about the same length, all of which are
    searched for: their neighbors are ranked together, and one that several of them have counts as the nearest's.

    Args:
        live: Searches the database for at least k neighbors.
        texts: Any.
        k: Neighbors of each text.
    """
    tokenizer, store = live.store.tokenizer, live.store
    cut = [_cut(tokens[1:], store.chunk_length) for tokens in tokenizer.encode(texts)]
    ids, distances = live.search([chunk for chunks in cut for chunk in chunks])
    found, first = [], 0
    for chunks in cut:
        rows = slice(first, first + len(chunks))
        first += len(chunks)
        ranked = _ranked(ids[rows], distances[rows], k)
        near = passages(store, [chunk for chunk, _, _ in ranked])
        neighbors = [
            Neighbor(**vars(passage), distance=distance, query_chunk=place)
            for passage, (_, distance, place) in zip(near, ranked, strict=True)
        ]
        pieces = tokenizer.pieces(np.concatenate(chunks))
        ends = np.cumsum([0, *map(len, chunks)])
        texts_of_chunks = ["".join(pieces[start:end]) for start, end in pairwise(ends)]
        found.append(Searched(chunks=texts_of_chunks, neighbors=neighbors))
    return found


def _cut(tokens: np.ndarray, m: int) -> list[np.ndarray]:
    """Cut the tokens of a text into the fewest pieces of at most m, none much shorter than the others."""
    return np.array_split(tokens, max(1, -(-len(tokens) // m)))


def _ranked(ids: np.ndarray, distances: np.ndarray, k: int) -> list[tuple[int, float, int]]:
    """Return chunk, distance and place of the k nearest neighbors of several chunks, [chunks, stored], together."""
    order = np.argsort(distances, axis=None, kind="stable")
    found: dict[int, tuple[int, float, int]] = {}
    for place, rank in zip(*np.unravel_index(order, ids.shape), strict=True):
        chunk = int(ids[place, rank])
        if chunk != NO_NEIGHBOR and chunk not in found:
            found[chunk] = (chunk, float(distances[place, rank]), int(place))
            if len(found) == k:
                break
    return list(found.values())
