"""Embeddings without an embedder: random vectors around random centers."""

import numpy as np

from retro_lab.artifacts.stage import Stage

WIDTH = 32
CENTERS = 40
SHARD = 1000


class Clusters(Stage):
    """Vectors in the order of their centers, as the chunks of a document are alike."""

    name = "embeddings"
    unit = "vectors"

    def __init__(self, vectors, seed):
        self.vectors, self.seed = vectors, seed

    def settings(self):
        return {"vectors": self.vectors, "seed": self.seed}

    def shard_sizes(self):
        return [min(SHARD, self.vectors - start) for start in range(0, self.vectors, SHARD)]

    def write_shard(self, shard, folder, advance):
        draw = np.random.default_rng((self.seed, 1))
        centers = np.random.default_rng(0).normal(size=(CENTERS, WIDTH))
        vectors = centers[np.sort(draw.integers(CENTERS, size=self.vectors))]
        vectors = vectors + 0.5 * draw.normal(size=vectors.shape)
        start = shard * SHARD
        np.save(folder / "embeddings.npy", vectors[start : start + SHARD].astype(np.float16))
        return {}

    def finish(self, shards, facts, folder):
        return {"chunks": self.vectors, "width": WIDTH, "shard_size": SHARD}
