"""ScaNN, the retriever of the paper, as a contestant of `index.py`: a tree, asymmetric hashing and reordering.

.venv-scann/bin/python scann_index.py FOLDER LISTS THREADS
"""

import sys
import tempfile
import time
from bisect import bisect_left
from pathlib import Path

import numpy as np
import scann
from searching import NEIGHBORS, WANTED, Facts, Task, serve

REORDERED = (20, 30, 45, 70, 100, 150, 250)
"""Candidates that are ranked again, of which the best number is taken."""


def main() -> None:
    """Build, tune by the clock, and serve."""
    task, lists, threads = Task(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    vectors, queries = task.vectors, task.queries
    start = time.process_time()
    searcher = (
        scann.scann_ops_pybind.builder(vectors, NEIGHBORS, "squared_l2")
        .set_n_training_threads(threads)
        .tree(num_leaves=lists, num_leaves_to_search=lists // 10, training_sample_size=len(vectors))
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(100)
        .build()
    )
    seconds = time.process_time() - start

    def search(queries: np.ndarray, leaves: int, reordered: int) -> np.ndarray:
        batched = searcher.search_batched if threads == 1 else searcher.search_batched_parallel
        ids, _ = batched(queries, NEIGHBORS, reordered, leaves)
        return ids.astype(np.int64)

    def recall(leaves: int) -> float:
        return task.recall(search(queries, leaves, reordered), vectors, queries)

    choices = sorted({lists, *(round(2 ** (eighth / 8)) for eighth in range(8 * (lists.bit_length() - 1)))})
    tried = []
    for reordered in REORDERED:
        enough = bisect_left(choices, WANTED, key=recall)
        if enough < len(choices):
            times = []
            for _ in range(3):
                start = time.process_time()
                search(queries, choices[enough], reordered)
                times.append(time.process_time() - start)
            tried.append((min(times), choices[enough], reordered))
    _, leaves, reordered = min(tried)
    facts = Facts(seconds, serialized_bytes(searcher) / len(vectors), f"leaves={leaves}, reordered={reordered}")
    serve(task, facts, lambda queries, _: search(queries, leaves, reordered))


def serialized_bytes(searcher: scann.scann_ops_pybind.ScannSearcher) -> int:
    """Return what an index takes on disk, the vectors that it reorders by included."""
    with tempfile.TemporaryDirectory() as folder:
        searcher.serialize(folder)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


if __name__ == "__main__":
    main()
