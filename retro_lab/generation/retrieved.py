"""What is retrieved while a text is written: searched for, or given by hand."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.live import LiveRetrieval
from retro_lab.retrieval.neighbors import NO_NEIGHBOR


class Found(NamedTuple):
    """The neighbors of a chunk, nearest first, as a model reads them."""

    ids: np.ndarray
    """Chunks of the database, int64 [k]; `NO_NEIGHBOR` for one that is missing or was given by hand."""
    distances: np.ndarray
    """Of the chunks, float32 [k]; infinite for one that is missing, NaN for one that was given by hand."""
    tokens: np.ndarray
    """[k, r]: what the model reads of each."""
    lengths: np.ndarray
    """int64 [k]: real tokens of each, 0 for one that is missing."""


Retrieve = Callable[[Sequence[np.ndarray]], list[Found]]
"""Returns the neighbors of chunks, each given as its tokens [m]."""


def searched(live: LiveRetrieval, k: int, value: Value) -> Retrieve:
    """Return what searches a database for the k nearest neighbors of chunks, all of them in one search."""

    def retrieve(chunks: Sequence[np.ndarray]) -> list[Found]:
        ids, distances = live.search(chunks)
        tokens, lengths = live.read(ids, k, value)
        return list(map(Found, ids[:, :k], distances[:, :k], tokens, lengths))

    return retrieve


def given(texts: Sequence[str], tokenizer: DocumentTokenizer, length: int) -> Retrieve:
    """Return what gives every chunk the same neighbors.

    Args:
        texts: Of the neighbors, in order, each with its continuation.
        tokenizer: Of the model.
        length: r, the tokens that the model reads of a neighbor; longer texts are cut.
    """
    tokens, lengths = np.zeros((len(texts), length), np.int64), np.zeros(len(texts), np.int64)
    for row, ids in enumerate(tokenizer.encode(texts)):
        kept = ids[1 : 1 + length]  # without the document marker
        tokens[row, : len(kept)], lengths[row] = kept, len(kept)
    found = Found(np.full(len(texts), NO_NEIGHBOR), np.full(len(texts), np.nan, np.float32), tokens, lengths)
    return lambda chunks: [found] * len(chunks)
