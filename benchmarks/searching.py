"""A contestant of `index.py` in a process of its own: it builds its index once, then searches when it is told to.

Only NumPy is imported here, so that a peer's environment needs nothing of this project.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

NEIGHBORS = 10
WANTED = 0.95
TIE = 1e-5
"""Relative difference of distances below which one neighbor is as near as another: repeated text has equal vectors."""


@dataclass(frozen=True)
class Task:
    """What all contestants are given, in one folder."""

    folder: Path

    @property
    def vectors(self) -> np.ndarray:
        """The database, float32 [N, d]."""
        return np.load(self.folder / "vectors.npy")

    @property
    def queries(self) -> np.ndarray:
        """Held-out queries, float32 [n, d]."""
        return np.load(self.folder / "queries.npy")

    def write(self, vectors: np.ndarray, queries: np.ndarray, nearest: np.ndarray) -> None:
        """Write database, queries and the ids of their exact neighbors, [n, 10]."""
        np.save(self.folder / "vectors.npy", vectors)
        np.save(self.folder / "queries.npy", queries)
        np.save(self.folder / "farthest.npy", _distances(queries, vectors[nearest]).max(1) * (1 + TIE))

    def recall(self, ids: np.ndarray, vectors: np.ndarray, queries: np.ndarray) -> float:
        """Return the share of the ids, [n, 10], that are as near as the ten nearest."""
        farthest = np.load(self.folder / "farthest.npy")[: len(ids), None]
        near = _distances(queries, vectors[np.maximum(ids, 0)]) <= farthest
        return float((near & (ids >= 0)).mean())


def _distances(queries: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Squared distance of each query, [n, d], to each of its own vectors, [n, k, d]."""
    return ((queries[:, None] - found) ** 2).sum(-1)


Search = Callable[[np.ndarray, str], np.ndarray]
"""Finds the ids of the ten nearest vectors, [n, 10], of queries, [n, d], with search parameters if any are given."""


@dataclass(frozen=True)
class Facts:
    """What a contestant says of its index once it is built and tuned."""

    build: float
    """Processor seconds."""
    bytes: float
    """Of each vector, on disk."""
    parameters: str


def serve(task: Task, facts: Facts, search: Search) -> None:
    """Print the facts, then search as standard input says and print the processor seconds and the recall.

    A line is `queries`, for the held-out queries, or `vectors`, for the whole database as queries, and parameters.
    """
    vectors, queries = task.vectors, task.queries
    _say(asdict(facts))
    for line in sys.stdin:
        what, _, parameters = line.strip().partition(" ")
        start = time.process_time()
        ids = search(queries if what == "queries" else vectors, parameters)
        seconds = time.process_time() - start
        _say([seconds, task.recall(ids, vectors, queries) if what == "queries" else None])


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)


class Contestant:
    """A process that serves."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it and wait until its index is built and tuned.

        Raises:
            RuntimeError: It ends before that.
        """
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = Facts(**self._answer())

    def search(self, what: str, parameters: str = "") -> tuple[float, float]:
        """Let it search for `queries` or `vectors`; return the processor seconds that it took, and the recall."""
        assert self._process.stdin is not None
        print(what, parameters, file=self._process.stdin, flush=True)
        seconds, recall = self._answer()
        return seconds, recall

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        """Let it end."""
        self._process.communicate()
