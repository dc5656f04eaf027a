"""The `token_neighbors` stage: for each token of a text, the tokens of a database with the nearest hidden states."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.evaluation.hidden_states import HiddenStates
from retro_lab.retrieval.index import Index
from retro_lab.retrieval.vectors import VectorIndex, distances

DISTANCES_NAME, TOKENS_NAME = "distances.npy", "tokens.npy"
SHARD_QUERIES = 65_536
SEARCHED_AT_ONCE = 4096
COMPARED_AT_ONCE = 256
"""Queries whose neighbors' states are in memory at once: 10 neighbors of width 1,024 take 10 MiB."""


class TokenNeighborsStage(Stage):
    """Find the k nearest states for the state before each token of a text."""

    name = "token_neighbors"
    unit = "tokens"

    def __init__(self, queries: HiddenStates, keys: HiddenStates, index: Index, k: int) -> None:
        """Search `index`, which holds the states of `keys`, for those of `queries`."""
        self.queries = queries
        self.keys = keys
        self.index = index
        self.k = k

    def settings(self) -> Mapping[str, Any]:
        """Return k."""
        return {"k": self.k}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the states of both texts, and the index."""
        return {"queries": self.queries.artifact, "keys": self.keys.artifact, "index": self.index.artifact}

    def libraries(self) -> Mapping[str, int]:
        """Return FAISS."""
        return {"faiss": 2}

    def shard_sizes(self) -> Sequence[int]:
        """Return the queries in each shard."""
        count = self.queries.chunks
        return [min(SHARD_QUERIES, count - start) for start in range(0, count, SHARD_QUERIES)]

    def prepare(self) -> AbstractContextManager[Any]:
        """Read the index, and the tokens of the database, before the first shard."""
        self._opened, self._tokens = self.index.open(), self.keys.tokens
        return nullcontext()

    def __getstate__(self) -> dict[str, Any]:
        """Leave to each process what it prepares itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_opened", "_tokens")}

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write the neighbors' squared distances, float32 [T, k], and the tokens that follow them, int [T, k].

        Whatever the index rounds, the distances are those of the stored states. A neighbor that is missing, which only
        a graph can have, is infinitely far.
        """
        start = shard * SHARD_QUERIES
        found = []
        stop = start + self.shard_sizes()[shard]
        for first in range(start, stop, SEARCHED_AT_ONCE):
            last = min(first + SEARCHED_AT_ONCE, stop)
            found.append(self._search(self.queries.range(first, last)))
            advance(last - first)
        for name, arrays in zip((DISTANCES_NAME, TOKENS_NAME), zip(*found, strict=True), strict=True):
            np.save(folder / name, np.concatenate(arrays), allow_pickle=False)
        return {}

    def _search(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = _complete(self._opened, queries, self.k)
        known = np.maximum(ids, 0)
        blocks = [slice(first, first + COMPARED_AT_ONCE) for first in range(0, len(queries), COMPARED_AT_ONCE)]
        exact = np.concatenate([distances(queries[rows], self.keys.rows(known[rows]), "l2") for rows in blocks])
        return np.where(ids < 0, np.float32(np.inf), exact), self._tokens[known]


def _complete(index: VectorIndex, queries: np.ndarray, k: int) -> np.ndarray:
    """Return the ids of the k nearest vectors, visiting more lists where those that are usual hold too few."""
    scale, largest = 1, index.largest_probe_scale()
    _, ids = index.search(queries, k)
    while scale < largest and (rows := np.flatnonzero((ids < 0).any(1))).size:
        scale = min(4 * scale, largest)
        ids[rows] = index.search(queries[rows], k, scale)[1]
    return ids


class TokenNeighbors:
    """Read-only view of a `token_neighbors` artifact."""

    def __init__(self, artifact: Artifact) -> None:
        """Open `artifact`."""
        self.artifact = artifact

    @property
    def distances(self) -> np.ndarray:
        """Squared L2 distances of the neighbors, float32 [T, k]."""
        return self._joined(DISTANCES_NAME)

    @property
    def tokens(self) -> np.ndarray:
        """The tokens that follow the neighbors' contexts, int [T, k]."""
        return self._joined(TOKENS_NAME)

    def _joined(self, name: str) -> np.ndarray:
        return np.concatenate([self.artifact.array(name, shard) for shard in range(self.artifact.shards)])
