"""A retrieval database: chunks of a corpus, and the neighbors of any text among them.

A database is independent of what is trained or scored: it is made of one token store, and `neighbors_of` searches it
for the chunks of any other with the same tokenizer (Borgeaud et al. 2022, Sec. 2.1).
"""

from collections.abc import Sequence

import numpy as np
import torch

from retro_lab import ranks
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.bm25 import BM25
from retro_lab.retrieval.config import (
    Control,
    DatabaseConfig,
    EmbedderConfig,
    IndexConfig,
    Method,
    RetrievalConfig,
)
from retro_lab.retrieval.controls import OracleStage, RandomSearcher, ShuffledStage
from retro_lab.retrieval.embedder import Embedder
from retro_lab.retrieval.embeddings import Embeddings, EmbeddingsStage
from retro_lab.retrieval.index import Index, IndexStage
from retro_lab.retrieval.live import LiveRetrieval
from retro_lab.retrieval.neighbors import Neighbors, NeighborsStage, Ranking, SearchStage
from retro_lab.retrieval.retriever import Retriever
from retro_lab.retrieval.searchers import BM25Searcher, BM25Shard, DenseSearcher, DenseShard, Searcher


class Database(Retriever):
    """Chunks that can be retrieved; a search for neighbors runs on first use, and its result is kept as an artifact.

    Attributes:
        name: Name of the corpus.
        store: Tokens that chunks are read from; a smaller database is the first of them.
        fraction: Share of the store's chunks.
        indexes: One FAISS index for each shard; none where no embeddings are compared.
    """

    def __init__(
        self,
        artifacts: ArtifactStore,
        name: str,
        store: TokenStore,
        samples: TokenStore,
        config: DatabaseConfig,
        retrieval: RetrievalConfig,
        index: IndexConfig,
        embedder: EmbedderConfig,
        *,
        k: int,
    ) -> None:
        """Divide the store into shards; embed and index them, if neighbors are found by their embeddings.

        Args:
            artifacts: Where artifacts are kept.
            name: Name of the corpus.
            store: Tokens that can be retrieved.
            samples: Held-out text that resembles the queries; search parameters are tuned on a sample of it.
            config: Which part of the store the database contains, and where its shards end.
            retrieval: How neighbors are found, and how many are stored.
            index: Kind, recall and size of the index.
            embedder: Model that embeds chunks.
            k: Largest number of neighbors that will be read for a chunk; at least as many are stored.

        Raises:
            ConfigurationError: k is larger than the number of chunks.
        """
        super().__init__(artifacts)
        self.name, self.store = name, store
        self._method, self._query_batch = retrieval.method, index.query_batch
        self.fraction, self._cuts = _cuts(config, store)
        self._check_k(k)
        self._stored = max(k, 1, retrieval.stored)
        self._bm25 = BM25(store, retrieval.bm25_k1, retrieval.bm25_b)
        self._control, self._seed = retrieval.control, config.seed
        self.reveals = self._control == Control.oracle
        searched = self._control in (None, Control.shuffled)
        hybrid = searched and retrieval.method == Method.hybrid
        self._ranking = Ranking(retrieval.candidates, self._bm25) if hybrid else None
        embedded = searched and retrieval.method != Method.bm25
        self._embedder = _build_embedder(embedder) if embedded else None
        self._shard_size = embedder.shard_size
        self._embeddings: dict[str, Embeddings] = {}
        self.indexes: tuple[Index, ...] = ()
        if self._embedder is not None:
            embeddings, queries = self._embed(store), self._embed(samples)
            self.indexes = tuple(
                Index(artifacts.build(IndexStage(embeddings, start, stop, index, queries, self._stored, config.seed)))
                for start, stop in self._shards
            )

    @property
    def chunks(self) -> int:
        """Chunks in the database."""
        return self._cuts[-1]

    @property
    def tokens(self) -> int:
        """Tokens in them, without padding."""
        # The last chunk of a document is padded, so tokens are counted by document.
        documents = int(np.searchsorted(self.store.document_start, self.chunks))
        return int(self.store.document_length[:documents].sum())

    @property
    def method(self) -> str:
        """How neighbors are found: the FAISS factory string, BM25, or both; or which control takes their place."""
        if self._control in (Control.random, Control.oracle):
            return f"{self._control} neighbors"
        found = self.indexes[-1].facts.factory if self.indexes else "BM25"
        if self._ranking:
            found = f"{found}, ranked by BM25"
        return f"{found}, {self._control} neighbors" if self._control else found

    @property
    def description(self) -> str:
        """The database in words."""
        if self._control == Control.oracle:
            return "the text to be predicted (oracle neighbors)"
        return f"{self.chunks:,} chunks of {self.name} ({self.method})"

    def source_of(self, queries: TokenStore) -> TokenStore:
        """Return the tokens that the neighbors of a text are chunks of: the database, but for the oracle the text."""
        return queries if self._control == Control.oracle else self.store

    def live(self, k: int) -> LiveRetrieval:
        """Return the search for neighbors of chunks that are in no token store.

        Args:
            k: Largest number of neighbors that will be read for a chunk.

        Raises:
            ConfigurationError: k is larger than the number of chunks, or a control takes the place of neighbors.
        """
        if self._control is not None:
            raise ConfigurationError(
                f"retrieval.control={self._control} makes neighbors for stored texts only, and none for the chunks of "
                "a prompt; leave it out."
            )
        self._check_k(k)

        def open_shards() -> Sequence[DenseShard | BM25Shard]:
            if self._embedder is None:
                return [BM25Shard(self._bm25, start, stop) for start, stop in self._shards]
            return [DenseShard(index) for index in self.indexes]

        return LiveRetrieval(
            self.store,
            open_shards,
            self._embedder,
            self._ranking,
            stored=max(k, self._stored),
            query_batch=self._query_batch,
        )

    def flops(self, queries: TokenStore) -> float | None:
        """Return the FLOPs to embed and search what a model is trained on; None if the index is not known.

        A chunk counts as as many tokens of the embedder as of its own. BM25 has no products of matrices.

        Args:
            queries: The text whose chunks retrieve.
        """
        if self._embedder is None:
            return 0.0
        others = 0 if queries.artifact.fingerprint == self.store.artifact.fingerprint else queries.chunks
        embedding = float(self._embedder.token_flops) * self.store.chunk_length * (self.store.chunks + others)
        searches = [index.query_flops(self._embedder.width) for index in self.indexes]
        if None in searches:
            return None
        return embedding + queries.chunks * sum(search for search in searches if search is not None)

    @property
    def _shards(self) -> list[tuple[int, int]]:
        return list(zip([0, *self._cuts], self._cuts, strict=False))

    def _check_k(self, k: int) -> None:
        if k > self.chunks:
            raise ConfigurationError(
                f"retrieval.k={k} is more than the {self.chunks} chunks of the database; use a smaller k or a larger "
                "corpus or fraction of it."
            )

    def _find(self, queries: TokenStore) -> Neighbors:
        """Search for the nearest chunks of the database for every chunk of a text, or make those of the control.

        If that is the database's own store, neighbors in the chunk's own group of documents are left out, but for the
        oracle.
        """
        build = self._artifacts.build
        if self._control == Control.oracle:
            return Neighbors(build(OracleStage(queries, self._stored)))
        searches = [
            build(SearchStage(searcher, queries, self.store, self._stored, self._query_batch, self._ranking))
            for searcher in self._searchers(queries)
        ]
        found = Neighbors(build(NeighborsStage(searches)))
        if self._control == Control.shuffled:
            return Neighbors(build(ShuffledStage(queries, self.store, found, self._seed)))
        return found

    def _searchers(self, queries: TokenStore) -> list[Searcher]:
        if self._control == Control.random:  # which needs no shards: a draw costs nothing
            return [RandomSearcher(queries, self.store, self.chunks, self._seed)]
        if self._embedder is None:
            return [BM25Searcher(queries, self._bm25, start, stop) for start, stop in self._shards]
        embeddings = self._embed(queries)
        return [DenseSearcher(embeddings, index) for index in self.indexes]

    def _embed(self, store: TokenStore) -> Embeddings:
        assert self._embedder is not None
        fingerprint = store.artifact.fingerprint
        if fingerprint not in self._embeddings:
            stage = EmbeddingsStage(store, self._embedder, self._shard_size)
            self._embeddings[fingerprint] = Embeddings(self._artifacts.build(stage))
        return self._embeddings[fingerprint]


def _build_embedder(config: EmbedderConfig) -> Embedder:
    device = f"cuda:{ranks.current().local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    return Embedder(
        config.model,
        config.revision,
        config.max_length,
        config.batch_size,
        config.precision,
        device,
        compile=config.compile,
    )


def database_documents(config: DatabaseConfig, store: TokenStore) -> int:
    """Return how many documents of the store, from its first on, are in the database."""
    return int(np.searchsorted(store.document_start, _cuts(config, store)[1][-1]))


def _cuts(config: DatabaseConfig, store: TokenStore) -> tuple[float, list[int]]:
    """Return the fraction of the store in the database, and the chunks at which its shards end.

    Shards end between documents, so that the database contains the continuation of each neighbor.
    """
    fraction = config.fraction
    if config.tokens is not None:
        fraction = min(1.0, config.tokens / store.facts.tokens)
    cuts = set()
    for share in {fraction, *(share for share in config.fractions if share < fraction)}:
        document = max(1, int(np.searchsorted(store.document_start, share * store.chunks)))
        cuts.add(int(store.document_start[min(document, store.documents)]))
    return fraction, sorted(cuts)
