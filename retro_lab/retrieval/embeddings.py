"""The `embeddings` stage: one vector for each chunk of a token store."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.embedder import Embedder

EMBEDDINGS_NAME = "embeddings.npy"
WINDOW = 2048
"""Chunks that are sorted by length together; more of them need less padding."""


@dataclass(frozen=True)
class EmbeddingsFacts:
    """Facts of an `embeddings` artifact: its vectors, their width, and the chunks in a shard."""

    chunks: int
    width: int
    shard_size: int


class EmbeddingsStage(Stage):
    """Decode every chunk to text and embed it; shards of consecutive chunks."""

    name = "embeddings"
    version = 3
    unit = "chunks"

    def __init__(self, store: TokenStore, embedder: Embedder, shard_size: int) -> None:
        """Embed all chunks of `store`, `shard_size` to a shard."""
        self.store = store
        self.embedder = embedder
        self.shard_size = shard_size

    def settings(self) -> Mapping[str, Any]:
        """Return the embedder's identity and the shard size."""
        return {"embedder": self.embedder.identity(), "shard_size": self.shard_size}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the tokens."""
        return {"tokens": self.store.artifact}

    def libraries(self) -> Mapping[str, int]:
        """Return those that tokenize and encode; processors round differently even with the same version of PyTorch."""
        return {"tokenizers": 2, "torch": 1, "transformers": 1}

    def shard_sizes(self) -> Sequence[int]:
        """Return the chunks in each shard."""
        return [
            min(self.shard_size, self.store.chunks - start) for start in range(0, self.store.chunks, self.shard_size)
        ]

    def prepare(self) -> AbstractContextManager[Any]:
        """Load the encoder before the first shard."""
        self.embedder.load()
        return nullcontext()

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write `embeddings.npy`, float16 [chunks of the shard, d]."""
        start = shard * self.shard_size
        stop = min(start + self.shard_size, self.store.chunks)
        windows = [np.arange(first, min(first + WINDOW, stop)) for first in range(start, stop, WINDOW)]
        rows = []
        for embedded in self.embedder.embed_each(partial(self.store.texts, window) for window in windows):
            rows.append(embedded)
            advance(len(embedded))
        np.save(folder / EMBEDDINGS_NAME, np.concatenate(rows), allow_pickle=False)
        return {}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Record the number of chunks and the width of an embedding."""
        width = int(np.load(shards[0] / EMBEDDINGS_NAME, mmap_mode="r", allow_pickle=False).shape[1])
        return asdict(EmbeddingsFacts(self.store.chunks, width, self.shard_size))


class Embeddings:
    """Read-only view of an `embeddings` artifact; d is the width of an embedding."""

    def __init__(self, artifact: Artifact) -> None:
        """Open `artifact`; vectors are read on demand.

        Raises:
            ArtifactError: The manifest lacks facts of embeddings.
        """
        self.artifact = artifact
        facts = artifact.read_facts(EmbeddingsFacts)
        self.chunks = facts.chunks
        self.width = facts.width
        self._starts = np.minimum(np.arange(0, facts.chunks + facts.shard_size, facts.shard_size), facts.chunks)
        """First vector of each shard, and their number at the end."""

    def range(self, start: int, stop: int) -> np.ndarray:
        """Read the embeddings of chunks `start` up to `stop`, float32 [stop - start, d]."""
        result = np.empty((stop - start, self.width), np.float32)
        last_shard = int(np.searchsorted(self._starts, stop))
        for shard in range(int(np.searchsorted(self._starts, start, "right")) - 1, last_shard):
            begin = self._starts[shard]
            first, last = max(start, begin), min(stop, self._starts[shard + 1])
            result[first - start : last - start] = self._shard(shard)[first - begin : last - begin]
        return result

    def rows(self, chunks: np.ndarray) -> np.ndarray:
        """Read the embeddings of any `chunks`, int [...], in any order, float32 [..., d]."""
        result = np.empty((*chunks.shape, self.width), np.float32)
        shards = np.searchsorted(self._starts, chunks, "right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            result[here] = self._shard(shard)[chunks[here] - self._starts[shard]]
        return result

    def _shard(self, number: int) -> np.ndarray:
        return self.artifact.array(EMBEDDINGS_NAME, shard=number)
