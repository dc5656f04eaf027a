"""Filters: scoring without the neighbors that have too much in common with the chunk, or with each other.

They choose among the stored neighbors, from the nearest on, so no filter needs a search (see `parts`).
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.config import FilterConfig
from retro_lab.retrieval.neighbors import Neighbors
from retro_lab.retrieval.overlaps import READ_AT_ONCE
from retro_lab.retrieval.parts import PartOfDatabase, PartStage
from retro_lab.retrieval.retriever import Retriever
from retro_lab.retrieval.searchers import NO_NEIGHBOR
from retro_lab.retrieval.substrings import longest_common_substrings
from retro_lab.retrieval.token_grams import GRAM, NO_GRAM, similarities, token_grams

READ_CHUNKS = 2
"""A chunk is compared with the one that follows it, and a neighbor with its continuation."""


class FilteredStage(PartStage):
    """Keep the stored neighbors that a filter does not drop."""

    name = "filtered"

    def __init__(
        self,
        query_store: TokenStore,
        database_store: TokenStore,
        neighbors: Neighbors,
        count: int,
        config: FilterConfig,
    ) -> None:
        """Choose among `neighbors` as `config` says."""
        super().__init__(query_store, database_store, neighbors, count)
        self.config = config

    def settings(self) -> Mapping[str, Any]:
        """Return what the filter drops, the tokens in a gram, and the neighbors kept at most."""
        return {**super().settings(), **asdict(self.config), "tokens_in_gram": GRAM}

    def prepare(self) -> AbstractContextManager[Any]:
        """Number the groups of documents alike in both texts, if they are compared: 8 bytes for each document."""
        if self.config.other_documents:
            self._query_groups, self._groups = _shared_numbers(self.query_store, self.database_store)
        return nullcontext()

    def choose(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first neighbors of some chunks that are not dropped."""
        parts = [self._choose(queries[first : first + READ_AT_ONCE]) for first in range(0, len(queries), READ_AT_ONCE)]
        ids, distances = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(distances)

    def _choose(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take neighbors one rank after another, for the chunks that still need some."""
        stored, far = np.asarray(self.neighbors.ids[queries]), np.asarray(self.neighbors.distances[queries])
        ids = np.full((len(queries), self.count), NO_NEIGHBOR, np.int64)
        distances = np.full((len(queries), self.count), np.inf, np.float32)
        chosen = np.zeros(len(queries), np.int64)
        chunks = _Texts(self.query_store, queries)
        kept_grams = np.full((len(queries), self.count, 0), NO_GRAM, np.uint64)
        for rank in range(stored.shape[1]):
            rows = np.flatnonzero((chosen < self.count) & (stored[:, rank] != NO_NEIGHBOR))
            if not len(rows):
                break
            rows = rows[self._passes(chunks, rows, queries[rows], stored[rows, rank])]
            if self.config.near_copies is not None:
                grams = _Texts(self.database_store, stored[rows, rank]).grams()
                if not kept_grams.shape[-1]:
                    kept_grams = np.full((*kept_grams.shape[:2], grams.shape[1]), NO_GRAM, np.uint64)
                new = ~self._copies(grams, kept_grams[rows])
                rows, grams = rows[new], grams[new]
                kept_grams[rows, chosen[rows]] = grams
            ids[rows, chosen[rows]], distances[rows, chosen[rows]] = stored[rows, rank], far[rows, rank]
            chosen[rows] += 1
        return ids, distances

    def _passes(self, chunks: "_Texts", rows: np.ndarray, queries: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Return which of `found`, a neighbor of each of `queries`, are not too similar to the chunk; bool [n]."""
        config = self.config
        passes = np.ones(len(rows), bool)
        if config.other_documents:
            own = self._query_groups[self.query_store.document_of(queries)]
            passes &= self._groups[self.database_store.document_of(found)] != own
        neighbors = _Texts(self.database_store, found)
        if config.longest_overlap is not None:
            longest = longest_common_substrings(
                chunks.tokens[rows],
                chunks.lengths[rows],
                neighbors.tokens[:, None],
                neighbors.lengths[:, None],
                chunks.marker,
            )
            passes &= longest < config.longest_overlap
        if config.jaccard is not None:
            passes &= similarities(chunks.grams()[rows], neighbors.grams()) < config.jaccard
        return passes

    def _copies(self, grams: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Return which neighbors, [n, grams], nearly copy one of those kept before them, [n, count, grams]."""
        n, count, width = kept.shape
        beside = np.broadcast_to(grams[:, None], kept.shape)
        found = similarities(kept.reshape(-1, width), beside.reshape(-1, width)).reshape(n, count)
        return np.asarray((found >= self.config.near_copies).any(1))


class FilteredDatabase(PartOfDatabase):
    """A database of which each chunk retrieves only what a filter leaves."""

    def __init__(self, artifacts: ArtifactStore, origin: Retriever, name: str, config: FilterConfig, *, k: int) -> None:
        """Drop neighbors of `origin` as `config` says.

        Args:
            artifacts: Where artifacts are kept.
            origin: The database.
            name: Name of the filter.
            config: What it drops.
            k: Largest number of neighbors that will be read for a chunk.
        """
        super().__init__(artifacts, origin, k)
        self.filter, self.config = name, config

    @property
    def chunks(self) -> int:
        """Chunks in the database."""
        return self.origin.chunks

    @property
    def tokens(self) -> int:
        """Tokens in them, without padding."""
        return self.origin.tokens

    @property
    def description(self) -> str:
        """What is retrieved from, in words."""
        return f"{self.origin.description}, filter {self.filter}"

    def _find(self, queries: TokenStore) -> Neighbors:
        source, neighbors = self.source_of(queries), self.origin.neighbors_of(queries)
        return Neighbors(self._artifacts.build(FilteredStage(queries, source, neighbors, self._count, self.config)))


class _Texts:
    """Some chunks with those that follow them in their documents."""

    def __init__(self, store: TokenStore, chunks: np.ndarray) -> None:
        self.marker = store.tokenizer.document_marker
        self.tokens = store.read(chunks, READ_CHUNKS)
        self.lengths = store.real_tokens(chunks, READ_CHUNKS)
        self._grams: np.ndarray | None = None

    def grams(self) -> np.ndarray:
        if self._grams is None:
            self._grams = token_grams(self.tokens, self.lengths, self.marker)
        return self._grams


def _shared_numbers(queries: TokenStore, database: TokenStore) -> tuple[np.ndarray, np.ndarray]:
    """Return a number for the group of each document of two texts, the same if the groups have the same name."""
    columns = [pq.read_table(store.documents_table, columns=["group"])["group"] for store in (queries, database)]
    names = pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks]))
    own, others = (pc.index_in(column, value_set=names).to_numpy() for column in columns)
    return own, others
