"""Live retrieval: neighbors of chunks that are in no token store, such as those of a prompt.

A search is that of `neighbors`, without an artifact: the same embedder, indexes, search parameters and number of
neighbors, for every database shard in use. So the chunks of a held-out text retrieve here what is stored for them. Only
the last bits of embeddings and distances depend on the chunks that are searched for together, so of chunks that are
equally far, as those of repeated text, one may take the place of another.
"""

from collections.abc import Callable, Sequence

import numpy as np

from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.embedder import Embedder
from retro_lab.retrieval.neighbors import Ranking, find_enough, merge_sorted, ranked
from retro_lab.retrieval.searchers import BM25Shard, DenseShard
from retro_lab.retrieval.sequences import Retrieved

Find = Callable[[np.ndarray, int, int], tuple[np.ndarray, np.ndarray]]


class LiveRetrieval:
    """Searches a database for chunks given as tokens. What is searched is read on first use, and stays in memory."""

    def __init__(
        self,
        store: TokenStore,
        open_shards: Callable[[], Sequence[DenseShard | BM25Shard]],
        embedder: Embedder | None,
        ranking: Ranking | None,
        *,
        stored: int,
        query_batch: int,
    ) -> None:
        """Search what `open_shards` reads.

        Args:
            store: Tokens of the database.
            open_shards: Reads the shards of the database, in order.
            embedder: Embeds the chunks; None for shards that are searched by tokens.
            ranking: How to rerank candidates by BM25.
            stored: Neighbors to search for; fewer may be read. Their number can decide which are found.
            query_batch: Chunks searched at once.
        """
        self.store, self.stored = store, stored
        self._open_shards, self._embedder, self._ranking, self._query_batch = (
            open_shards,
            embedder,
            ranking,
            query_batch,
        )
        self._shards: list[tuple[DenseShard | BM25Shard, BM25Shard | None]] | None = None

    def search(self, chunks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Find the neighbors of chunks.

        Args:
            chunks: Tokens of each chunk, at most as many as the database's chunks have; document markers are ignored.

        Returns:
            Chunks of the database, int64 [chunks, stored], nearest first, and distances, float32 of the same shape,
            padded with -1 and infinity.
        """
        parts = [
            self._search(chunks[first : first + self._query_batch])
            for first in range(0, len(chunks), self._query_batch)
        ]
        if not parts:
            return np.zeros((0, self.stored), np.int64), np.zeros((0, self.stored), np.float32)
        ids, distances = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(distances)

    def read(self, ids: np.ndarray, k: int, values: Value) -> tuple[np.ndarray, np.ndarray]:
        """Return what a model reads of the k nearest neighbors `ids`, [chunks, K], that `search` found.

        Returns:
            Tokens [chunks, k, r], and lengths int64 [chunks, k], 0 for a missing neighbor.
        """
        return Retrieved(self.store, ids, values).read(np.arange(len(ids)), k)

    def _search(self, chunks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        marker = self.store.tokenizer.document_marker
        texts = [chunk[chunk != marker] for chunk in chunks]
        vectors = None
        if self._embedder is not None:
            embedded = self._embedder.embed(self.store.tokenizer.decode(texts))
            vectors = embedded.astype(np.float32)
        found = []
        for shard, scores in self._opened():
            candidates = self.stored if self._ranking is None else max(self._ranking.candidates, self.stored)
            find = _by_vectors(shard, vectors) if isinstance(shard, DenseShard) else _by_tokens(shard, texts)
            size = shard.stop - shard.start
            ids, distances = find_enough(find, len(chunks), candidates, size, shard.largest_probe_scale)
            if scores is not None:
                ids, distances = ranked(ids, distances, texts, scores, self.stored)
            found.append((ids, distances))
        all_ids, all_distances = zip(*found, strict=True)
        return merge_sorted(all_ids, all_distances)

    def _opened(self) -> list[tuple[DenseShard | BM25Shard, BM25Shard | None]]:
        if self._shards is None:
            self._shards = [
                (shard, BM25Shard(self._ranking.bm25, shard.start, shard.stop) if self._ranking else None)
                for shard in self._open_shards()
            ]
        return self._shards


def _by_vectors(shard: DenseShard, vectors: np.ndarray | None) -> Find:
    assert vectors is not None
    return lambda rows, count, probe_scale: shard.find(vectors[rows], count, probe_scale)


def _by_tokens(shard: BM25Shard, texts: Sequence[np.ndarray]) -> Find:
    return lambda rows, count, probe_scale: shard.find([texts[row] for row in rows], count, probe_scale)
