"""The `embeddings` stage: one vector for each chunk of a token store."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.embedder import Embedder

WINDOW = 2048
"""Chunks that are sorted by length together: the more, the less padding."""


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
        """The embedder's identity and the shard size."""
        return {"embedder": self.embedder.identity(), "shard_size": self.shard_size}

    def inputs(self) -> Mapping[str, Artifact]:
        """The tokens."""
        return {"tokens": self.store.artifact}

    def libraries(self) -> Mapping[str, int]:
        """Those that tokenize and encode; within one version of PyTorch, too, processors round differently."""
        return {"tokenizers": 2, "torch": 1, "transformers": 1}

    def shard_sizes(self) -> Sequence[int]:
        """Chunks in each shard."""
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
        np.save(folder / "embeddings.npy", np.concatenate(rows), allow_pickle=False)
        return {}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Record the number of chunks and the width of an embedding."""
        width = int(np.load(shards[0] / "embeddings.npy", mmap_mode="r", allow_pickle=False).shape[1])
        return {"chunks": self.store.chunks, "width": width, "shard_size": self.shard_size}


def read_embeddings(embeddings: Artifact, start: int, stop: int) -> np.ndarray:
    """Read the embeddings of chunks `start` up to `stop`, float32 [stop - start, d]."""
    size = embeddings.facts["shard_size"]
    result = np.empty((stop - start, embeddings.facts["width"]), np.float32)
    for shard in range(start // size, -(-stop // size)):
        first, last = max(start, shard * size), min(stop, (shard + 1) * size)
        rows = embeddings.array(f"{shard:05}/embeddings.npy")
        result[first - start : last - start] = rows[first - shard * size : last - shard * size]
    return result


def read_rows(embeddings: Artifact, chunks: np.ndarray) -> np.ndarray:
    """Read the embeddings of any `chunks`, int [...], in any order, float32 [..., d]."""
    size = embeddings.facts["shard_size"]
    result = np.empty((*chunks.shape, embeddings.facts["width"]), np.float32)
    shards = chunks // size
    for shard in np.unique(shards):
        here = shards == shard
        result[here] = embeddings.array(f"{shard:05}/embeddings.npy")[chunks[here] - shard * size]
    return result
