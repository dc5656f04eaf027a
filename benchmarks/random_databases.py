"""What a score with a random database costs: its neighbors, beside the one search that those are chosen from.

    python benchmarks/random_databases.py

The chunks are of real Python source. Their vectors are random, since the time of an exact search does not depend on
what is in them. Both take turns on one thread; a ratio is of medians.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import torch
from python_stores import python_stores
from side_by_side import Clock, origin

from retro_lab import console
from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.config import Unit
from retro_lab.retrieval.random_databases import RandomPartStage

CHUNK_LENGTH, WIDTH, STORED, COUNT = 16, 384, 100, 10
"""Tokens of a chunk, numbers in its vector, neighbors stored by the search, and neighbors kept of them."""


def main() -> None:
    """Measure, print the table and, with `--out`, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for random_databases.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    console.quiet()
    with tempfile.TemporaryDirectory() as folder:
        database, queries = python_stores(Path(folder), CHUNK_LENGTH)
        report = measure(database, queries, arguments.queries, arguments.rounds)
    print(report, end="")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "random_databases.md").write_text(report, encoding="utf-8")


def measure(database: TokenStore, queries: TokenStore, count: int, rounds: int) -> str:
    """Return the table."""
    draw = np.random.default_rng(0)
    count = min(count, queries.chunks)
    vectors = draw.standard_normal((count, WIDTH), np.float32)
    index = faiss.IndexFlatL2(WIDTH)
    index.add(draw.standard_normal((database.chunks, WIDTH), np.float32))
    distances, ids = index.search(vectors, STORED)
    stored: Any = SimpleNamespace(ids=ids, distances=distances)
    rows = np.arange(count)
    parts = {unit: RandomPartStage(queries, database, stored, COUNT, 0.5, unit, 0) for unit in Unit}
    contestants: dict[str, Callable[[], object]] = {
        f"exact search, {STORED} neighbors": partial(index.search, vectors, STORED)
    }
    for unit, part in parts.items():
        contestants[f"half of the {unit}s at random, {COUNT} neighbors"] = partial(part.choose, rows)
    seconds = Clock(torch.device("cpu")).in_turns(contestants, rounds)
    searched = next(iter(seconds.values()))
    lines = [
        f"# Random databases\n\n{origin(torch.device('cpu'))}\n",
        f"{count:,} queries, {database.chunks:,} chunks of {CHUNK_LENGTH} tokens, vectors of {WIDTH} numbers.\n",
        "| Neighbors by | Seconds | Share of the search |",
        "| :-- | --: | --: |",
        *(f"| {name} | {taken:.3f} | {taken / searched:.2%} |" for name, taken in seconds.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
