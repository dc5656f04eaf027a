"""The size of a database and its artifacts, and the time to build it, in closed form.

Tests compare real builds with these formulas.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.factory import FLOAT32, INT32, INT64, choose_factory, index_bytes

FLOAT16 = 2
SHARD_SECONDS = 600
"""Time for one GPU to embed a shard of the suggested size; a killed rank loses no more than this."""
NUMBERS_PER_DOCUMENT = 3
"""First chunk, tokens and bytes; the token store keeps 64 bits for each."""


@dataclass(frozen=True)
class DatabaseSizes:
    """The sizes of a database: the chunks that can be retrieved, and the chunks that need neighbors."""

    database_tokens: float
    searched_tokens: float
    """Tokens whose chunks need neighbors: those that are trained on."""
    tokens_per_document: float
    """Mean; decides how much padding there is, half a chunk for each document."""
    chunk_length: int
    vocabulary: int
    width: int
    """Of an embedding."""
    stored: int
    """Neighbors kept for each chunk."""
    factory: str
    """`index.factory`, which may be `auto`."""
    exact_below: int
    """`index.exact_below`."""
    recall: float
    """`index.recall`."""
    max_bytes: float | None
    """`index.max_bytes`."""
    largest_index: float
    """Bytes that the index of one database shard may take at most."""

    def _chunks(self, tokens: float) -> int:
        padding = (self.chunk_length - 1) / 2 / self.tokens_per_document
        return math.ceil(tokens * (1 + padding) / self.chunk_length)

    @property
    def chunks(self) -> int:
        """Chunks in the database."""
        return self._chunks(self.database_tokens)

    @property
    def searched_chunks(self) -> int:
        """Chunks that need neighbors."""
        return self._chunks(self.searched_tokens)

    @property
    def corpus_chunks(self) -> int:
        """Chunks that are encoded and embedded, as keys or as queries."""
        return max(self.chunks, self.searched_chunks)

    @property
    def tokens_bytes(self) -> float:
        """The token store: ids, the tokens left in each chunk's document, and a row for each document."""
        documents = max(self.database_tokens, self.searched_tokens) / self.tokens_per_document
        id_bytes = 2 if self.vocabulary <= 2**16 else 4
        chunk = self.chunk_length * id_bytes + INT32
        return (self.corpus_chunks + 1) * chunk + documents * NUMBERS_PER_DOCUMENT * INT64

    @property
    def embeddings_bytes(self) -> float:
        """Embeddings in float16."""
        return self.corpus_chunks * self.width * FLOAT16

    @property
    def paper_bytes(self) -> float:
        """The database as the paper stores it, judging by its 93 TB and 215 GB: keys in float32, tokens in 32 bits."""
        return self.chunks * (self.width * FLOAT32 + self.chunk_length * INT32)

    @cached_property
    def index_shards(self) -> int:
        """Fewest database shards whose indexes each fit into `largest_index` bytes.

        Raises:
            ConfigurationError: FAISS does not know the factory string, or even one chunk does not fit.
        """
        shards = 1
        while (size := self._shard_index_bytes(shards)) > self.largest_index:
            if shards >= self.chunks:
                raise ConfigurationError(
                    f"task.index_memory={self.largest_index:g} bytes cannot hold an index of even one chunk; raise it."
                )
            shards = min(self.chunks, max(shards + 1, math.floor(shards * size / self.largest_index)))
        return shards

    @property
    def index_factory(self) -> str:
        """FAISS factory string of one shard's index."""
        return self._factory(self.index_shards)

    @property
    def index_bytes(self) -> float:
        """Bytes of all indexes, on disk or in memory."""
        return self.index_shards * self._shard_index_bytes(self.index_shards)

    @property
    def search_bytes(self) -> float:
        """Ids and distances found in each database shard."""
        return self.index_shards * self.searched_chunks * self.stored * (INT64 + FLOAT32)

    @property
    def neighbors_bytes(self) -> float:
        """Ids and distances after the shards have been merged."""
        id_bytes = INT32 if self.chunks < 2**31 else INT64
        return self.searched_chunks * self.stored * (id_bytes + FLOAT32)

    def embedding_hours(self, chunks_per_second: float) -> float:
        """Return the hours that one GPU takes to embed all chunks."""
        return self.corpus_chunks / chunks_per_second / 3600

    def search_hours(self, queries_per_second: float) -> float:
        """Return the hours that one CPU core takes to search each index for all chunks that need neighbors."""
        return self.searched_chunks * self.index_shards / queries_per_second / 3600

    def _factory(self, shards: int) -> str:
        vectors = math.ceil(self.chunks / shards)
        return choose_factory(self.factory, vectors, self.width, self.exact_below, self.recall, self.max_bytes).factory

    def _shard_index_bytes(self, shards: int) -> float:
        return index_bytes(self._factory(shards), math.ceil(self.chunks / shards), self.width)


@dataclass(frozen=True)
class BuildLayout:
    """How a build is divided, so that all ranks have work until the end and a killed rank loses little."""

    sizes: DatabaseSizes
    gpus: int
    """Ranks, each with a GPU."""
    chunks_per_second: float
    """Embedded by one GPU."""
    queries_per_shard: int
    """Chunks that one search shard searches for in one index."""

    @property
    def embedding_shard_size(self) -> int:
        """Chunks per embedding shard: a power of two that takes at most `SHARD_SECONDS`, or a rank's part if less."""
        longest = 2 ** math.floor(math.log2(max(1, self.chunks_per_second * SHARD_SECONDS)))
        return max(1, min(longest, math.ceil(self.sizes.corpus_chunks / self.gpus)))

    @property
    def embedding_shards(self) -> int:
        """Embedding shards of all ranks."""
        return math.ceil(self.sizes.corpus_chunks / self.embedding_shard_size)

    @property
    def shard_hours(self) -> float:
        """Hours that one embedding shard takes."""
        return self.embedding_shard_size / self.chunks_per_second / 3600

    @property
    def embedding_hours(self) -> float:
        """Hours until all ranks have embedded all shards."""
        rounds = math.ceil(self.embedding_shards / self.gpus)
        return rounds * self.embedding_shard_size / self.chunks_per_second / 3600

    @property
    def search_shards(self) -> int:
        """Search shards, over all indexes."""
        return math.ceil(self.sizes.searched_chunks / self.queries_per_shard) * self.sizes.index_shards

    @property
    def index_shard_chunks(self) -> int:
        """Chunks in the largest index."""
        return math.ceil(self.sizes.chunks / self.sizes.index_shards)
