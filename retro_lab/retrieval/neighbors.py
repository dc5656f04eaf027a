"""The `search` and `neighbors` stages: which database chunks each chunk retrieves.

    chunks of a split ─► search, once for each database shard ─► neighbors: merge over the shards in use

Both contain ids and distances for every chunk (see `searchers`), sorted by distance and filled up with -1. Merging
sorted lists gives the neighbors in any set of shards, so databases of many sizes cost one search.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retro_lab.artifacts.arrays import create_array
from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.bm25 import BM25, text_tokens
from retro_lab.retrieval.searchers import NO_NEIGHBOR, BM25Shard, Searcher

IDS_NAME, DISTANCES_NAME = "ids.npy", "distances.npy"
SHARD_QUERIES = 65_536
FILTER_MARGIN = 16
"""Neighbors fetched in addition to those stored, as some are dropped for being in the query's group."""
FETCHED_AT_ONCE = 2**24
"""Largest number of neighbors of all queries of one search together: 0.2 GB of ids and distances."""


@dataclass(frozen=True)
class Ranking:
    """How the candidates that a searcher finds are reranked.

    Each shard of a database contributes this many candidates, so only here may other shards change the result.
    """

    candidates: int
    bm25: BM25


class SearchStage(Stage):
    """Search one database shard for the neighbors of every chunk of a split.

    If queries and database are the same token store, neighbors in the query's own group are dropped. Those of its own
    document may contain the text that is to be predicted (Borgeaud et al. 2022, Sec. 2.1); those of its group are out
    of reach for a held-out chunk, whose whole group is held out, and training must see neighbors as scoring does. A
    continuation ends with its document, so retrieved tokens always come from the group that is compared here.
    """

    name = "search"
    version = 4
    unit = "queries"

    def __init__(
        self,
        searcher: Searcher,
        query_store: TokenStore,
        database_store: TokenStore,
        stored: int,
        query_batch: int,
        ranking: Ranking | None = None,
    ) -> None:
        """Find `stored` neighbors with `searcher` for each chunk of `query_store`.

        Args:
            searcher: Finds chunks of `database_store`.
            query_store: Tokens of the text that retrieves.
            database_store: Tokens of the text that is retrieved from.
            stored: Neighbors of each chunk.
            query_batch: Queries searched at once.
            ranking: How to rerank candidates by BM25, of which `stored` are kept.
        """
        self.searcher = searcher
        self.query_store = query_store
        self.database_store = database_store
        self.stored = stored
        self.query_batch = query_batch
        self.ranking = ranking
        self.same_store = query_store.artifact.fingerprint == database_store.artifact.fingerprint

    def settings(self) -> Mapping[str, Any]:
        """Return the searcher's settings, the neighbors stored, and whether the query's own group is left out."""
        settings = {**self.searcher.settings(), "stored": self.stored, "same_group_dropped": self.same_store}
        if self.ranking is None:
            return settings
        return settings | {"candidates": self.ranking.candidates, **self.ranking.bm25.settings()}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return what the searcher reads, and the tokens if BM25 reranks."""
        inputs = dict(self.searcher.inputs())
        if self.ranking is not None:
            inputs |= {"query_tokens": self.query_store.artifact, "tokens": self.database_store.artifact}
        return inputs

    def libraries(self) -> Mapping[str, int]:
        """Return those that search and rerank."""
        return {**self.searcher.libraries(), **(self.ranking.bm25.libraries() if self.ranking is not None else {})}

    def shard_sizes(self) -> Sequence[int]:
        """Return the queries in each shard."""
        return query_shards(self.query_store)

    def prepare(self) -> AbstractContextManager[Any]:
        """Read what is searched into memory before the first shard."""
        self.searcher.open()
        if self.ranking is not None:
            self._scores = BM25Shard(self.ranking.bm25, self.searcher.start, self.searcher.stop)
        return nullcontext()

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write `ids.npy`, int64 [queries, stored], and `distances.npy`, float32 of the same shape."""
        first = shard * SHARD_QUERIES
        count = self.shard_sizes()[shard]
        ids = np.full((count, self.stored), NO_NEIGHBOR, np.int64)
        distances = np.full((count, self.stored), np.inf, np.float32)
        for start in range(0, count, self.query_batch):
            rows = np.arange(start, min(start + self.query_batch, count))
            ids[rows], distances[rows] = self._neighbors(rows + first)
            advance(len(rows))
        np.save(folder / IDS_NAME, ids, allow_pickle=False)
        np.save(folder / DISTANCES_NAME, distances, allow_pickle=False)
        return {}

    def _neighbors(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the neighbors of query chunks; rerank them if configured."""
        if self.ranking is None:
            return self._search(chunks, self.stored)
        ids, distances = self._search(chunks, max(self.ranking.candidates, self.stored))
        return ranked(ids, distances, text_tokens(self.query_store, chunks), self._scores, self.stored)

    def _search(self, chunks: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Search for `wanted` neighbors of query chunks, without those in a query's own group."""

        def find(rows: np.ndarray, count: int, probe_scale: int) -> tuple[np.ndarray, np.ndarray]:
            return self.searcher.search(chunks[rows], count, probe_scale)

        def outside_own_group(rows: np.ndarray, found: np.ndarray) -> np.ndarray:
            own = self.query_store.group_of(chunks[rows])
            kept: np.ndarray = self.database_store.group_of(found) != own[:, None]
            return kept

        size = self.searcher.stop - self.searcher.start
        kept = outside_own_group if self.same_store else None
        return find_enough(find, len(chunks), wanted, size, self.searcher.largest_probe_scale, kept)


def find_enough(
    find: Callable[[np.ndarray, int, int], tuple[np.ndarray, np.ndarray]],
    queries: int,
    wanted: int,
    size: int,
    largest_probe_scale: int,
    kept: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Search for `wanted` neighbors of each query, fetching more until enough are kept.

    Args:
        find: Searches for some of the queries, given their rows [n], a number of neighbors and a probe scale, as
            `Searcher.search` does.
        queries: How many there are.
        wanted: Neighbors of each.
        size: Chunks of the shard that is searched.
        largest_probe_scale: Beyond which `find` finds no more.
        kept: Which of the chunks found for some rows, [n, count], may be neighbors; None for all.

    Returns:
        Chunks, int64 [queries, wanted], and distances, float32 of the same shape, padded with -1 and infinity.
    """
    ids = np.full((queries, wanted), NO_NEIGHBOR, np.int64)
    distances = np.full((queries, wanted), np.inf, np.float32)
    pending = np.arange(queries)
    fetch, probe_scale = wanted + (FILTER_MARGIN if kept is not None else 0), 1
    while len(pending):
        fetch, probe_scale = min(fetch, size), min(probe_scale, largest_probe_scale)
        unsatisfied = []
        for rows in np.array_split(pending, -(-len(pending) * fetch // FETCHED_AT_ONCE)):
            found_distances, found = find(rows, fetch, probe_scale)
            keep = found != NO_NEIGHBOR
            if kept is not None:
                keep &= kept(rows, found)
            ids[rows], distances[rows] = first_kept(found, found_distances, keep, wanted)
            # A list that is not full has all that the index finds at this probe scale; a full one may be cut off.
            not_full = (found == NO_NEIGHBOR).any(1)
            more = np.where(not_full, probe_scale < largest_probe_scale, fetch < size)
            unsatisfied.append(rows[(keep.sum(1) < wanted) & more])
        pending = np.concatenate(unsatisfied)
        fetch, probe_scale = fetch * 4, probe_scale * 4
    return ids, distances


def ranked(
    ids: np.ndarray, distances: np.ndarray, texts: Sequence[np.ndarray], shard: BM25Shard, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rank candidates of one database shard by BM25.

    Args:
        ids: Chunks of the candidates of each query, int64 [queries, candidates], padded with -1.
        distances: Of the same shape; overwritten.
        texts: Text tokens of each query.
        shard: Scores of the chunks.
        count: How many to keep.

    Returns:
        Chunks and their negative scores, [queries, count], padded with -1 and infinity.
    """
    for row, tokens in enumerate(texts):
        found = ids[row] != NO_NEIGHBOR
        distances[row, found] = -shard.scores(tokens, ids[row, found])
    order = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1)


def query_shards(store: TokenStore) -> list[int]:
    """Return the chunks in each shard of what is stored for every chunk of a text, in order."""
    return [min(SHARD_QUERIES, store.chunks - start) for start in range(0, store.chunks, SHARD_QUERIES)]


def first_kept(ids: np.ndarray, distances: np.ndarray, keep: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` kept entries of each sorted row, padded with -1 and infinity at the end."""
    ids, distances = np.where(keep, ids, NO_NEIGHBOR), np.where(keep, distances, np.inf)
    order = np.argsort(~keep, axis=1, kind="stable")[:, :count]
    ids, distances = np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1)
    padding = ((0, 0), (0, count - ids.shape[1]))
    return np.pad(ids, padding, constant_values=NO_NEIGHBOR), np.pad(distances, padding, constant_values=np.inf)


def merge_sorted(ids: Sequence[np.ndarray], distances: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Merge the sorted neighbor lists of several shards, each [queries, K], into the nearest K of all.

    Equal distances keep the order of the shards, so the result does not depend on where shards end.
    """
    width = ids[0].shape[1]
    all_ids, all_distances = np.concatenate(ids, 1), np.concatenate(distances, 1)
    order = np.argsort(all_distances, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(all_ids, order, 1), np.take_along_axis(all_distances, order, 1)


@dataclass(frozen=True)
class NeighborsFacts:
    """Facts of a `neighbors` artifact: its chunks, and the share of them with at least one neighbor."""

    queries: int
    with_neighbors: float


class NeighborTableStage(Stage):
    """A stage that writes a table with the form of `neighbors`; shards are ranges of queries."""

    unit = "queries"
    combines_shards = True

    @abstractmethod
    def rows(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and distances of one range of queries, [queries, K], as `Neighbors` has them."""

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write one range of queries; ids fit 32 bits while the database has fewer than 2^31 chunks."""
        ids, distances = self.rows(shard)
        dtype = np.int32 if ids.max(initial=0) < 2**31 else np.int64
        np.save(folder / IDS_NAME, ids.astype(dtype), allow_pickle=False)
        np.save(folder / DISTANCES_NAME, distances, allow_pickle=False)
        advance(len(ids))
        return {"with_neighbors": int((ids[:, 0] != NO_NEIGHBOR).sum()), "queries": len(ids)}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Lay the ranges end to end as `ids.npy` and `distances.npy`, [chunks, K]."""
        for name in (IDS_NAME, DISTANCES_NAME):
            parts = [np.load(shard / name, mmap_mode="r", allow_pickle=False) for shard in shards]
            shape = (sum(len(part) for part in parts), parts[0].shape[1])
            whole = create_array(folder / name, np.result_type(*parts), shape)
            np.concatenate(parts, out=whole)
            whole.flush()
        queries = sum(fact["queries"] for fact in facts)
        return asdict(NeighborsFacts(queries, sum(fact["with_neighbors"] for fact in facts) / queries))


class NeighborsStage(NeighborTableStage):
    """Merge the searches of the database shards in use into one table for a split."""

    name = "neighbors"

    def __init__(self, searches: Sequence[Artifact]) -> None:
        """Merge `searches`, one for each database shard, in the order of the shards."""
        self.searches = searches

    def settings(self) -> Mapping[str, Any]:
        """Return nothing: the inputs decide the output."""
        return {}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the searches, by the number of their database shard."""
        return {f"shard_{number:03}": search for number, search in enumerate(self.searches)}

    def shard_sizes(self) -> Sequence[int]:
        """Return the queries in each shard of the searches."""
        first = self.searches[0]
        return [len(first.array(IDS_NAME, shard)) for shard in range(first.shards)]

    def rows(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Merge one range of queries."""
        return merge_sorted(
            [search.array(IDS_NAME, shard) for search in self.searches],
            [search.array(DISTANCES_NAME, shard) for search in self.searches],
        )


@dataclass(frozen=True)
class Neighbors:
    """Read-only view of a `neighbors` artifact, or of a control in its place: K neighbors of each of C chunks."""

    artifact: Artifact

    def __reduce__(self) -> tuple[type["Neighbors"], tuple[Artifact]]:
        """Have a copy in another process open the memory maps itself; pickling them would copy what they map."""
        return Neighbors, (self.artifact,)

    @cached_property
    def ids(self) -> np.ndarray:
        """Chunks of the database, int [C, K], nearest first; padded with `NO_NEIGHBOR`."""
        return self.artifact.array(IDS_NAME)

    @cached_property
    def distances(self) -> np.ndarray:
        """Their distances, float32 [C, K], ascending; padded with infinity."""
        return self.artifact.array(DISTANCES_NAME)

    @property
    def with_neighbors(self) -> float:
        """Share of the chunks that have at least one neighbor."""
        return self.artifact.read_facts(NeighborsFacts).with_neighbors
