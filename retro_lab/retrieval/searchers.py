"""Searchers: how chunks of one database shard are found, by their embeddings or by their tokens.

Whatever is compared, a searcher gives distances that sort ascending: `dense` those of the index's metric, `bm25` minus
the score.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retro_lab.artifacts.stage import Artifact
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.bm25 import BM25, Postings
from retro_lab.retrieval.embeddings import read_rows
from retro_lab.retrieval.index import open_index
from retro_lab.retrieval.vectors import VectorIndex

METHODS = ("dense", "bm25", "hybrid")
MISSING = -1
"""Id of a neighbor that does not exist; its distance is infinite."""


class Searcher(ABC):
    """Finds the nearest chunks of one database shard; `open` comes before everything that is not a name."""

    most_effort: int = 1
    """Effort beyond which a search finds no more."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """All besides the inputs that decides what is found, as JSON-able values."""

    @abstractmethod
    def inputs(self) -> Mapping[str, Artifact]:
        """Artifacts that are searched, by role."""

    @abstractmethod
    def open(self) -> None:
        """Read into memory what is searched."""

    @property
    @abstractmethod
    def chunks(self) -> int:
        """Number of chunks that can be found."""

    @abstractmethod
    def search(self, queries: np.ndarray, count: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the `count` nearest chunks for each of the query chunks `queries`, [n].

        Returns:
            Distances, float32 [n, count], ascending, and chunks of the database, int64 [n, count]: infinity and
            `MISSING` where no more is found with this effort.
        """


class DenseSearcher(Searcher):
    """Nearest embeddings (Borgeaud et al. 2022, Sec. 2.1)."""

    def __init__(self, queries: Artifact, index: Artifact) -> None:
        """Search `index` for the rows of `queries`, an embeddings artifact."""
        self.queries = queries
        self.index = index
        self._opened: VectorIndex | None = None

    def settings(self) -> Mapping[str, Any]:
        """Only that embeddings are compared."""
        return {"method": "dense"}

    def inputs(self) -> Mapping[str, Artifact]:
        """Query embeddings and index."""
        return {"queries": self.queries, "index": self.index}

    def open(self) -> None:
        """Read the index, onto GPUs where FAISS can."""
        self._opened = open_index(self.index)
        self.most_effort = self._opened.most_effort()

    @property
    def chunks(self) -> int:
        """Vectors of the index."""
        return int(self.index.facts["vectors"])

    def search(self, queries: np.ndarray, count: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        """Search the index."""
        assert self._opened is not None
        distances, found = self._opened.search(read_rows(self.queries, queries), count, effort)
        offset = self.index.manifest.recipe["settings"]["start"]
        return distances, np.where(found >= 0, found + offset, MISSING)


@dataclass(frozen=True)
class BM25Settings:
    """Constants of BM25."""

    k1: float
    b: float

    def __post_init__(self) -> None:
        """Refuse what gives no ranking.

        Raises:
            ConfigurationError: k1 is negative, or b is no share.
        """
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise ConfigurationError(
                f"retrieval.bm25_k1={self.k1} must not be negative and retrieval.bm25_b={self.b} must be from 0 to 1."
            )

    def as_dict(self) -> dict[str, float]:
        """JSON-able values."""
        return asdict(self)

    def learnt_from(self, store: TokenStore) -> BM25:
        """Count the tokens of `store`."""
        return BM25(store, self.k1, self.b)


class BM25Searcher(Searcher):
    """Chunks that share rare tokens with the query; needs neither embeddings nor an index on disk."""

    def __init__(
        self, query_store: TokenStore, database_store: TokenStore, start: int, stop: int, settings: BM25Settings
    ) -> None:
        """Search the chunks `start` up to `stop` of `database_store` for chunks of `query_store`."""
        self.query_store = query_store
        self.database_store = database_store
        self.start = start
        self.stop = stop
        self.bm25 = settings
        self._postings: Postings | None = None

    def settings(self) -> Mapping[str, Any]:
        """Constants and range of chunks."""
        return {"method": "bm25", "bm25": self.bm25.as_dict(), "start": self.start, "stop": self.stop}

    def inputs(self) -> Mapping[str, Artifact]:
        """Tokens of queries and database."""
        return {"query_tokens": self.query_store.artifact, "tokens": self.database_store.artifact}

    def open(self) -> None:
        """Count tokens and invert the shard."""
        self._postings = Postings(self.bm25.learnt_from(self.database_store), self.start, self.stop)

    @property
    def chunks(self) -> int:
        """Chunks of the shard."""
        return self.stop - self.start

    def search(self, queries: np.ndarray, count: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        """Score all chunks of the shard that share a token."""
        assert self._postings is not None
        return self._postings.search(self.query_store, queries, count)
