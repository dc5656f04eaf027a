"""Searchers: they find chunks of one database shard by their embeddings or by their tokens.

All searchers return distances in ascending order: `dense` those of the index's metric, `bm25` the negative score.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retro_lab.artifacts.stage import Artifact
from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.bm25 import BM25, highest, text_tokens
from retro_lab.retrieval.embeddings import Embeddings
from retro_lab.retrieval.index import Index

NO_NEIGHBOR = -1
"""Id of a neighbor that does not exist; its distance is infinite."""


class Searcher(ABC):
    """Finds the nearest of the database's chunks from `start` up to `stop`; call `open` before `search`."""

    largest_probe_scale: int = 1
    """Probe scale beyond which a search finds no more."""

    def __init__(self, start: int, stop: int) -> None:
        """Search one database shard."""
        self.start = start
        self.stop = stop

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Return everything besides the inputs that decides the result, as JSON-able values."""

    @abstractmethod
    def inputs(self) -> Mapping[str, Artifact]:
        """Return the artifacts that are searched, by role."""

    @abstractmethod
    def libraries(self) -> Mapping[str, int]:
        """Return the libraries that decide the result, as `Stage.libraries` does."""

    @abstractmethod
    def open(self) -> None:
        """Read what is searched into memory."""

    @abstractmethod
    def search(self, queries: np.ndarray, count: int, probe_scale: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the `count` nearest chunks for each of the query chunks `queries`, [n].

        Returns:
            Distances, float32 [n, count], ascending, and chunks of the database, int64 [n, count]: infinity and
            `NO_NEIGHBOR` if no more are found with this probe scale.
        """


class DenseShard:
    """The chunks of a database shard by their embeddings, for queries from anywhere."""

    def __init__(self, index: Index) -> None:
        """Read `index` into memory, onto GPUs if FAISS supports it there."""
        self.start, self.stop = index.start, index.stop
        self._opened = index.open()
        self.largest_probe_scale = self._opened.largest_probe_scale()

    def find(self, vectors: np.ndarray, count: int, probe_scale: int) -> tuple[np.ndarray, np.ndarray]:
        """Search for embeddings, float32 [n, d]; returns what `Searcher.search` does."""
        distances, found = self._opened.search(vectors, count, probe_scale)
        return distances, np.where(found >= 0, found + self.start, NO_NEIGHBOR)


class BM25Shard:
    """The chunks of a database shard by their tokens, for queries from anywhere."""

    largest_probe_scale = 1

    def __init__(self, bm25: BM25, start: int, stop: int) -> None:
        """Compute the scores of the whole store of `bm25`, if that has not been done, and take a part of them."""
        self.start, self.stop = start, stop
        self._scorer = bm25.shard(start, stop)

    def scores(self, tokens: np.ndarray, chunks: np.ndarray) -> np.ndarray:
        """Return the scores of some `chunks` of the shard for one query's text tokens, float32 [chunks]."""
        scores: np.ndarray = self._scorer.get_scores_from_ids(tokens)[chunks - self.start]
        return scores

    def find(self, texts: Sequence[np.ndarray], count: int, probe_scale: int) -> tuple[np.ndarray, np.ndarray]:
        """Score all chunks for each query's text tokens; one that shares no token with the query is not found.

        Returns what `Searcher.search` does.
        """
        distances = np.full((len(texts), count), np.inf, np.float32)
        ids = np.full((len(texts), count), NO_NEIGHBOR, np.int64)
        for row, tokens in enumerate(texts):
            scores = self._scorer.get_scores_from_ids(tokens)
            best = highest(scores, count)
            best = best[scores[best] > 0]
            distances[row, : len(best)] = -scores[best]
            ids[row, : len(best)] = best + self.start
        return distances, ids


class DenseSearcher(Searcher):
    """Nearest embeddings (Borgeaud et al. 2022, Sec. 2.1)."""

    def __init__(self, queries: Embeddings, index: Index) -> None:
        """Search `index` for the rows of `queries`."""
        super().__init__(index.start, index.stop)
        self.queries = queries
        self.index = index

    def settings(self) -> Mapping[str, Any]:
        """Return the method."""
        return {"method": "dense"}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the query embeddings and the index."""
        return {"queries": self.queries.artifact, "index": self.index.artifact}

    def libraries(self) -> Mapping[str, int]:
        """Return FAISS."""
        return {"faiss": 2}

    def open(self) -> None:
        """Read the index, onto GPUs if FAISS supports it there."""
        self._shard = DenseShard(self.index)
        self.largest_probe_scale = self._shard.largest_probe_scale

    def search(self, queries: np.ndarray, count: int, probe_scale: int) -> tuple[np.ndarray, np.ndarray]:
        """Search the index."""
        return self._shard.find(self.queries.rows(queries), count, probe_scale)


class BM25Searcher(Searcher):
    """Chunks that share rare tokens with the query; needs neither embeddings nor an index on disk."""

    def __init__(self, query_store: TokenStore, bm25: BM25, start: int, stop: int) -> None:
        """Search the chunks from `start` up to `stop` of the store of `bm25` for chunks of `query_store`."""
        super().__init__(start, stop)
        self.query_store = query_store
        self.bm25 = bm25

    def settings(self) -> Mapping[str, Any]:
        """Return the constants and the range of chunks."""
        return {"method": "bm25", **self.bm25.settings(), "start": self.start, "stop": self.stop}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the tokens of queries and database."""
        return {"query_tokens": self.query_store.artifact, "tokens": self.bm25.store.artifact}

    def libraries(self) -> Mapping[str, int]:
        """Return the library that scores."""
        return self.bm25.libraries()

    def open(self) -> None:
        """Compute the scores of the whole store, once."""
        self._shard = BM25Shard(self.bm25, self.start, self.stop)

    def search(self, queries: np.ndarray, count: int, probe_scale: int) -> tuple[np.ndarray, np.ndarray]:
        """Score all chunks of the shard; one that shares no token with the query is not found."""
        return self._shard.find(text_tokens(self.query_store, queries), count, probe_scale)
