"""The `overlaps` stage: how much of each chunk stands, word for word, in what it retrieves.

The measure of leakage of Borgeaud et al. 2022, Sec. 2.6: if a chunk C has m tokens, and the longest token substring in
common with one of its 10 nearest neighbors has s, then r(C) = s / m, from 0 for a chunk of which nothing is in them to
1 for one that is there entirely. A neighbor comes with its continuation: up to 128 tokens where a chunk has 64. The
tokens of C are those of its text; the document marker, which the paper does not have, and padding count neither in s
nor in m.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retro_lab.artifacts.arrays import create_array
from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.neighbors import SHARD_QUERIES, Neighbors, query_shards
from retro_lab.retrieval.sequences import Retrieved
from retro_lab.retrieval.substrings import longest_common_substrings

OVERLAPS_NAME = "overlaps.npy"
COMPARED = 10
"""Neighbors that a chunk is compared with, if as many are stored (Sec. 2.6)."""
THRESHOLDS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Overlaps for which the facts tell the share of chunks with at least as much."""
COPIED = 0.75
"""A chunk with this overlap, one of `THRESHOLDS`, is nearly a copy of what it retrieves."""
READ_AT_ONCE = 1024
"""Chunks whose neighbors are read together: 2.6 MB of `uint16` tokens for 10 neighbors of 128."""


def chunk_overlaps(store: TokenStore, retrieved: Retrieved, chunks: np.ndarray, k: int) -> np.ndarray:
    """Return r(C) of some chunks and what they retrieve, read as for a model (Borgeaud et al. 2022, Sec. 2.6).

    Args:
        store: Tokens of the text that retrieves.
        retrieved: Neighbors of its chunks.
        chunks: Which chunks, int [n].
        k: Neighbors that each is compared with, nearest first.

    Returns:
        float32 [n], from 0 to 1; 0 for a chunk without neighbors or without text.
    """
    overlaps = np.empty(len(chunks), np.float32)
    for first in range(0, len(chunks), READ_AT_ONCE):
        part = chunks[first : first + READ_AT_ONCE]
        lengths = store.real_tokens(part)
        marker = store.tokenizer.document_marker
        longest = longest_common_substrings(store.read(part), lengths, *retrieved.read(part, k), marker)
        overlaps[first : first + len(part)] = longest / np.maximum(1, lengths - store.starts_document(part))
    return overlaps


@dataclass(frozen=True)
class OverlapsFacts:
    """Facts of an `overlaps` artifact."""

    queries: int
    compared: int
    """Neighbors that each chunk was compared with, at most."""
    mean: float
    """Mean overlap of all chunks."""
    at_least: dict[str, float]
    """Share of the chunks whose overlap is at least so much, for each of `THRESHOLDS`."""


class OverlapsStage(Stage):
    """Compare each chunk of a text with its stored neighbors; shards are ranges of chunks."""

    name = "overlaps"
    unit = "queries"
    combines_shards = True

    def __init__(self, query_store: TokenStore, database_store: TokenStore, neighbors: Neighbors) -> None:
        """Compare the chunks of `query_store` with their `neighbors` and those neighbors' continuations.

        Args:
            query_store: Tokens of the text that retrieves.
            database_store: Tokens of the text that is retrieved from.
            neighbors: Which of its chunks each chunk retrieves.
        """
        self.query_store = query_store
        self.database_store = database_store
        self.neighbors = neighbors

    def settings(self) -> Mapping[str, Any]:
        """Return how many neighbors a chunk is compared with."""
        return {"compared": self._compared}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the tokens of both texts and the neighbors."""
        return {
            "query_tokens": self.query_store.artifact,
            "tokens": self.database_store.artifact,
            "neighbors": self.neighbors.artifact,
        }

    def shard_sizes(self) -> Sequence[int]:
        """Return the queries in each shard."""
        return query_shards(self.query_store)

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write `overlaps.npy`, float32 [queries of the shard]."""
        retrieved = Retrieved(self.database_store, self.neighbors.ids, Value.neighbor_and_continuation)
        start = shard * SHARD_QUERIES
        stop = min(start + SHARD_QUERIES, self.query_store.chunks)
        parts = []
        for first in range(start, stop, READ_AT_ONCE):
            chunks = np.arange(first, min(first + READ_AT_ONCE, stop))
            parts.append(chunk_overlaps(self.query_store, retrieved, chunks, self._compared))
            advance(len(chunks))
        overlaps = np.concatenate(parts)
        np.save(folder / OVERLAPS_NAME, overlaps, allow_pickle=False)
        # fsum is exact: the result does not depend on the processor's order of additions.
        return {"sum": math.fsum(overlaps), "at_least": [int((overlaps >= least).sum()) for least in THRESHOLDS]}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Lay the ranges end to end as `overlaps.npy`, [chunks]."""
        queries = self.query_store.chunks
        whole = create_array(folder / OVERLAPS_NAME, np.float32, (queries,))
        parts = [np.load(shard / OVERLAPS_NAME, mmap_mode="r", allow_pickle=False) for shard in shards]
        np.concatenate(parts, out=whole)
        whole.flush()
        counts = zip(*(fact["at_least"] for fact in facts), strict=True)
        shares = {f"{least:g}": sum(count) / queries for least, count in zip(THRESHOLDS, counts, strict=True)}
        mean = math.fsum(fact["sum"] for fact in facts) / queries
        return asdict(OverlapsFacts(queries, self._compared, mean, shares))

    @property
    def _compared(self) -> int:
        return min(COMPARED, self.neighbors.ids.shape[1])


@dataclass(frozen=True)
class Overlaps:
    """Read-only view of an `overlaps` artifact: r(C) of each of C chunks (Borgeaud et al. 2022, Sec. 2.6)."""

    artifact: Artifact

    @cached_property
    def values(self) -> np.ndarray:
        """Share of each chunk's text that its nearest neighbors have in one piece, float32 [C], from 0 to 1."""
        return self.artifact.array(OVERLAPS_NAME)

    @cached_property
    def facts(self) -> OverlapsFacts:
        """Mean overlap, and shares of chunks with at least so much."""
        return self.artifact.read_facts(OverlapsFacts)
