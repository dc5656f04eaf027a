"""Controls: neighbors of which it is known beforehand what they can add (`retrieval.control`).

    random    chunks of the database drawn at random: a searcher in the place of the others
    shuffled  the neighbors that were found for another chunk of the same text
    oracle    the chunk itself, whose continuation is the text to be predicted

The first two can add nothing, so a gain with them is not a gain of retrieval. The third shows that what neighbors say
reaches the predictions. All are artifacts with the form of `neighbors`: no model and no training knows of them.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from retro_lab.artifacts.stage import Artifact
from retro_lab.corpus.tokens import TokenStore
from retro_lab.permutation import permute
from retro_lab.retrieval.neighbors import SHARD_QUERIES, Neighbors, NeighborTableStage, first_kept, query_shards
from retro_lab.retrieval.searchers import NO_NEIGHBOR, Searcher


class RandomSearcher(Searcher):
    """Finds chunks at random, for each query others: a stretch of a permutation of the database, without repetition.

    What it finds depends on the seed and the number of the query alone. Its distances are places in the stretch.
    """

    def __init__(self, query_store: TokenStore, database_store: TokenStore, chunks: int, seed: int) -> None:
        """Draw from the first `chunks` chunks of `database_store` for chunks of `query_store`."""
        super().__init__(0, chunks)
        self.query_store = query_store
        self.database_store = database_store
        self.seed = seed

    def settings(self) -> Mapping[str, Any]:
        """Return the range of chunks and the seed."""
        return {"method": "random", "start": self.start, "stop": self.stop, "seed": self.seed}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the tokens of queries and database, whose numbers of chunks and documents are used."""
        return {"query_tokens": self.query_store.artifact, "tokens": self.database_store.artifact}

    def libraries(self) -> Mapping[str, int]:
        """Return none: the draw is arithmetic on whole numbers."""
        return {}

    def open(self) -> None:
        """Read nothing."""

    def search(self, queries: np.ndarray, count: int, probe_scale: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw `count` chunks for each query."""
        first = permute(queries % self.stop, self.stop, self.seed, 1)  # queries next to each other start far apart
        places = (first[:, None] + np.arange(count)) % self.stop
        distances = np.broadcast_to(np.arange(count, dtype=np.float32), places.shape)
        return distances, permute(places, self.stop, self.seed, 0)


class ShuffledStage(NeighborTableStage):
    """Give each chunk the neighbors of another chunk of its text, each chunk's to exactly one.

    The other chunk is of another document unless one document is more than half of the text. Neighbors in the query's
    own group are left out, as in a search, and the next move up.
    """

    name = "shuffled"

    def __init__(self, query_store: TokenStore, database_store: TokenStore, neighbors: Neighbors, seed: int) -> None:
        """Shuffle `neighbors`, of the chunks of `query_store` among those of `database_store`."""
        self.query_store = query_store
        self.database_store = database_store
        self.neighbors = neighbors
        self.seed = seed

    def settings(self) -> Mapping[str, Any]:
        """Return the seed."""
        return {"seed": self.seed}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the neighbors, and the tokens of both texts for their documents."""
        return {
            "query_tokens": self.query_store.artifact,
            "tokens": self.database_store.artifact,
            "neighbors": self.neighbors.artifact,
        }

    def shard_sizes(self) -> Sequence[int]:
        """Return the queries in each shard."""
        return query_shards(self.query_store)

    def prepare(self) -> AbstractContextManager[Any]:
        """Decide which chunk's neighbors each gets: 8 bytes for each chunk, 40 at first."""
        self._other = others(self.query_store, self.seed)
        return nullcontext()

    def rows(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the neighbors of the other chunks of one range of queries."""
        first = shard * SHARD_QUERIES
        queries = np.arange(first, first + self.shard_sizes()[shard])
        other = self._other[queries]
        ids, distances = self.neighbors.ids[other], self.neighbors.distances[other]
        keep = ids != NO_NEIGHBOR
        if self.query_store.artifact.fingerprint == self.database_store.artifact.fingerprint:
            keep &= self.database_store.group_of(ids) != self.query_store.group_of(queries)[:, None]
        return first_kept(ids, distances, keep, ids.shape[1])


class OracleStage(NeighborTableStage):
    """Give each chunk itself as its only neighbor, so that the neighbor's continuation is what is to be predicted."""

    name = "oracle"

    def __init__(self, query_store: TokenStore, stored: int) -> None:
        """Give each chunk of `query_store` `stored` neighbors, of which only the first exists."""
        self.query_store = query_store
        self.stored = stored

    def settings(self) -> Mapping[str, Any]:
        """Return the neighbors stored."""
        return {"stored": self.stored}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the tokens."""
        return {"query_tokens": self.query_store.artifact}

    def shard_sizes(self) -> Sequence[int]:
        """Return the queries in each shard."""
        return query_shards(self.query_store)

    def rows(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Return each chunk of one range at a distance of 0 from itself."""
        first, count = shard * SHARD_QUERIES, self.shard_sizes()[shard]
        ids = np.full((count, self.stored), NO_NEIGHBOR, np.int64)
        distances = np.full((count, self.stored), np.inf, np.float32)
        ids[:, 0], distances[:, 0] = np.arange(first, first + count), 0
        return ids, distances


def others(store: TokenStore, seed: int) -> np.ndarray:
    """Return another chunk for each chunk of a store: a permutation, without fixed points if there are two chunks.

    The chunks are shuffled within their documents and then moved on by half of all chunks, past the end of a document
    that is no longer than that.
    """
    chunks = np.arange(store.chunks)
    order = np.lexsort((permute(chunks, store.chunks, seed, 0), store.document_of(chunks)))
    other = np.empty_like(order)
    other[order] = np.roll(order, -(store.chunks // 2))
    return other
