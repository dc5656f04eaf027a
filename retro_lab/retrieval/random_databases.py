"""Random databases from one search: each chunk or document of a database is kept with the same probability.

Which ones are kept follows from a seed and their numbers, alike on every machine, so the random databases of one seed
are nested: a larger one holds the smaller ones. See `parts` for what makes them as good as a search of each.

Two things differ from a database that was made of the kept text alone. If chunks are kept, the continuation of a kept
one still comes from the whole text, although the chunk that it is may be left out; documents are kept with all of it.
And only an exact search stores the nearest: of an approximate index, or of BM25 over dense candidates, what is left are
the nearest of those that it found.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.tokens import TokenStore
from retro_lab.permutation import chances
from retro_lab.retrieval.config import Unit
from retro_lab.retrieval.database import Database
from retro_lab.retrieval.neighbors import SHARD_QUERIES, Neighbors, first_kept
from retro_lab.retrieval.parts import PartOfDatabase, PartStage, is_full
from retro_lab.retrieval.searchers import NO_NEIGHBOR

COUNTED_AT_ONCE = 2**20
"""Chunks of the database that are counted together."""


def chances_of(store: TokenStore, chunks: np.ndarray, unit: Unit, seed: int) -> np.ndarray:
    """Return the share from which on a random database of this seed holds each chunk: it does if the share is larger.

    Args:
        store: Tokens of the database.
        chunks: Chunks of it, of any shape; `NO_NEIGHBOR` has an arbitrary share.
        unit: What is drawn.
        seed: Not negative.

    Returns:
        float64 of the same shape, at least 0 and below 1.
    """
    drawn = store.document_of(chunks) if unit is Unit.document else chunks
    return chances(np.maximum(drawn, 0), seed)


class RandomPartStage(PartStage):
    """Keep the stored neighbors that are in a random database."""

    name = "random_part"

    def __init__(
        self,
        query_store: TokenStore,
        database_store: TokenStore,
        neighbors: Neighbors,
        count: int,
        share: float,
        drawn: Unit,
        seed: int,
    ) -> None:
        """Choose among `neighbors`; each chunk or document is in the database with probability `share`."""
        super().__init__(query_store, database_store, neighbors, count)
        self.share = share
        self.drawn = drawn
        self.seed = seed

    def settings(self) -> Mapping[str, Any]:
        """Return the share, what is drawn, the seed, and the neighbors kept at most."""
        return {**super().settings(), "share": self.share, "drawn": str(self.drawn), "seed": self.seed}

    def choose(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first neighbors of some chunks in the random database."""
        ids, distances = self.neighbors.ids[queries], self.neighbors.distances[queries]
        kept = chances_of(self.database_store, ids, self.drawn, self.seed) < self.share
        return first_kept(ids, distances, kept & (ids != NO_NEIGHBOR), self.count)


class RandomDatabase(PartOfDatabase):
    """A random part of a database."""

    def __init__(
        self, artifacts: ArtifactStore, origin: Database, share: float, seed: int, *, unit: Unit, k: int
    ) -> None:
        """Keep each chunk or document of `origin` with probability `share`.

        Args:
            artifacts: Where artifacts are kept.
            origin: The database.
            share: Above 0 and up to 1.
            seed: Of the draw.
            unit: What is drawn.
            k: Largest number of neighbors that will be read for a chunk.
        """
        super().__init__(artifacts, origin, k)
        self.database = origin
        self.share, self.seed, self.unit = share, seed, unit

    @property
    def chunks(self) -> int:
        """Chunks in the random database."""
        return self._size[0]

    @property
    def tokens(self) -> int:
        """Tokens in them, without padding."""
        return self._size[1]

    @property
    def description(self) -> str:
        """What is retrieved from, in words."""
        return f"{self.share:.3g} of the {self.unit}s of {self.database.description} at random, seed {self.seed}"

    def complete_above(self, queries: TokenStore, k: int) -> float:
        """Return the share above which the random databases of this seed are complete for every chunk of a text.

        Above it, k of the stored neighbors of each chunk are left, so what is read is what an exact search finds.
        """
        stored = self.database.neighbors_of(queries)
        store, full = self.source_of(queries), np.flatnonzero(is_full(stored))
        largest = 0.0
        for first in range(0, len(full), SHARD_QUERIES):
            ids = stored.ids[full[first : first + SHARD_QUERIES]]
            needed = np.partition(chances_of(store, ids, self.unit, self.seed), k - 1, axis=1)[:, k - 1]
            largest = max(largest, float(needed.max()))
        return largest

    def _find(self, queries: TokenStore) -> Neighbors:
        stage = RandomPartStage(
            queries,
            self.source_of(queries),
            self.database.neighbors_of(queries),
            self._count,
            self.share,
            self.unit,
            self.seed,
        )
        return Neighbors(self._artifacts.build(stage))

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Count chunks and tokens."""
        store, chunks, tokens = self.database.store, 0, 0
        for first in range(0, self.database.chunks, COUNTED_AT_ONCE):
            part = np.arange(first, min(first + COUNTED_AT_ONCE, self.database.chunks))
            kept = part[chances_of(store, part, self.unit, self.seed) < self.share]
            chunks += len(kept)
            tokens += int(store.real_tokens(kept).sum())
        return chunks, tokens
