"""BM25 over token ids, by the library bm25s: which chunks share rare tokens with a query.

It replaces the embedder, or reranks dense candidates, as in the follow-up work (Doostmohammadi et al. 2023,
Surface-Based Retrieval Reduces Perplexity of Retrieval-Augmented Language Models). Document markers and padding
are ignored.
"""

from collections.abc import Iterator
from functools import cached_property

import bm25s
import numpy as np

from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError

BLOCK = 4096
"""Chunks read at once."""


class BM25:
    """Scores of the chunks of a token store (Lucene's variant), computed once from all of them.

    Document frequencies and the mean length are those of the whole store, so scores of different database shards are
    comparable and merging shards is exact. Memory: about 10 bytes for each distinct token of each chunk of the store,
    and 40 while they are computed (0.6 and 2.5 GB for a million chunks of 64 tokens).
    """

    def __init__(self, store: TokenStore, k1: float, b: float) -> None:
        """Score chunks of `store`; nothing is read before the first use.

        Raises:
            ConfigurationError: k1 is negative, or b is not between 0 and 1.
        """
        if k1 < 0 or not 0 <= b <= 1:
            raise ConfigurationError(
                f"retrieval.bm25_k1={k1} must not be negative and retrieval.bm25_b={b} must be from 0 to 1."
            )
        self.store = store
        self.k1 = k1
        self.b = b

    def __reduce__(self) -> tuple[type["BM25"], tuple[TokenStore, float, float]]:
        """Have a copy in another process compute the scores itself, as they take more memory than the tokens."""
        return BM25, (self.store, self.k1, self.b)

    def settings(self) -> dict[str, float]:
        """Return the constants, as JSON-able values."""
        return {"bm25_k1": self.k1, "bm25_b": self.b}

    def libraries(self) -> dict[str, int]:
        """Return the library that scores, as `Stage.libraries` does."""
        return {"bm25s": 2}

    @cached_property
    def _learned(self) -> bm25s.BM25:
        scorer = bm25s.BM25(self.k1, self.b, method="lucene")
        scorer.index(_Corpus(self.store), create_empty_token=False, show_progress=False)
        return scorer

    def shard(self, start: int, stop: int) -> bm25s.BM25:
        """Return the scorer of the chunks from `start` up to `stop`, numbered from 0."""
        scorer = bm25s.BM25(self.k1, self.b, method="lucene")
        scorer.nonoccurrence_array = None
        whole = self._learned.scores
        inside = (whole["indices"] >= start) & (whole["indices"] < stop)
        scorer.scores = {
            "data": whole["data"][inside],
            "indices": whole["indices"][inside] - start,
            "indptr": np.concatenate([[0], np.cumsum(inside)])[whole["indptr"]],
            "num_docs": stop - start,
        }
        return scorer


class _Corpus:
    """The chunks of a token store as bm25s reads a corpus, a few at a time."""

    def __init__(self, store: TokenStore) -> None:
        self.store = store
        self.vocab = {token: token for token in range(store.tokenizer.vocabulary_size)}

    @property
    def ids(self) -> "_Corpus":
        return self

    def __len__(self) -> int:
        return self.store.chunks

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, self.store.chunks, BLOCK):
            chunks = np.arange(first, min(first + BLOCK, self.store.chunks))
            yield from (tokens.tolist() for tokens in text_tokens(self.store, chunks))


def text_tokens(store: TokenStore, chunks: np.ndarray) -> list[np.ndarray]:
    """Read the text tokens of each chunk, without document markers and padding."""
    lengths = store.real_tokens(chunks)
    rows = [row[:length] for row, length in zip(store.read(chunks), lengths, strict=True)]
    return [row[row != store.tokenizer.document_marker] for row in rows]


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the `count` highest of `scores`, [n], highest first; ties keep their order."""
    if count < len(scores):
        last = np.partition(scores, len(scores) - count)[len(scores) - count]
        places = np.concatenate([np.flatnonzero(scores > last), np.flatnonzero(scores == last)[:count]])
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:count]
