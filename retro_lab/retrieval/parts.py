"""Retrieving from a part of a database without a search: by dropping some of the neighbors that are stored.

If the stored list of a chunk holds its K nearest neighbors, what is left of it are the nearest of the part, in their
order. As long as k are left, they are what an exact search of the part would find. `complete` says for how many chunks
that holds: the others read fewer than k, although the part may have more.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retro_lab.artifacts.stage import Artifact
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.neighbors import SHARD_QUERIES, Neighbors, NeighborTableStage, query_shards
from retro_lab.retrieval.overlaps import COMPARED
from retro_lab.retrieval.retriever import Retriever
from retro_lab.retrieval.searchers import NO_NEIGHBOR


class PartStage(NeighborTableStage):
    """Keep some of the stored neighbors of each chunk, `count` of them at most, so that the table stays small."""

    def __init__(self, query_store: TokenStore, database_store: TokenStore, neighbors: Neighbors, count: int) -> None:
        """Choose among `neighbors`, of the chunks of `query_store` among those of `database_store`."""
        self.query_store = query_store
        self.database_store = database_store
        self.neighbors = neighbors
        self.count = min(count, neighbors.ids.shape[1])

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the neighbors, and the tokens of both texts."""
        return {
            "query_tokens": self.query_store.artifact,
            "tokens": self.database_store.artifact,
            "neighbors": self.neighbors.artifact,
        }

    def settings(self) -> Mapping[str, Any]:
        """Return how many neighbors are kept at most."""
        return {"count": self.count}

    def shard_sizes(self) -> Sequence[int]:
        """Return the queries in each shard."""
        return query_shards(self.query_store)

    def rows(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Choose for one range of queries."""
        first = shard * SHARD_QUERIES
        return self.choose(np.arange(first, first + self.shard_sizes()[shard]))

    @abstractmethod
    def choose(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and distances of the first `count` neighbors that are kept for some chunks, [n, count]."""


class PartOfDatabase(Retriever):
    """Retrieves what is left of the stored neighbors of another retriever, `origin`."""

    def __init__(self, artifacts: ArtifactStore, origin: Retriever, k: int) -> None:
        """Leave some of the neighbors that `origin` stores, enough for k of them and for the measure of leakage."""
        super().__init__(artifacts)
        self.origin = origin
        self.reveals = origin.reveals
        self._count = max(k, COMPARED)

    def source_of(self, queries: TokenStore) -> TokenStore:
        """Return the tokens that the neighbors of a text are chunks of."""
        return self.origin.source_of(queries)

    def complete(self, queries: TokenStore, k: int) -> float:
        """Return the share of the chunks of a text whose k nearest neighbors in the part are all known.

        They are if k of the stored neighbors are left, or if every chunk of the database is stored for it.
        """
        left = self.neighbors_of(queries).ids[:, k - 1] != NO_NEIGHBOR
        return float((left | ~is_full(self.origin.neighbors_of(queries))).mean())


def is_full(neighbors: Neighbors) -> np.ndarray:
    """Return for which chunks the stored list is full, so that the database can have more neighbors; bool [C]."""
    return np.asarray(neighbors.ids[:, -1] != NO_NEIGHBOR)
