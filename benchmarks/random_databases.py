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
from side_by_side import Clock, origin

from retro_lab import console
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.sources.python_source import PythonSource
from retro_lab.corpus.tokenizer import ByteBPE
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage, TokenStore
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
        database, queries = real_chunks(Path(folder))
        report = measure(database, queries, arguments.queries, arguments.rounds)
    print(report, end="")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "random_databases.md").write_text(report, encoding="utf-8")


def real_chunks(folder: Path) -> tuple[TokenStore, TokenStore]:
    """Return the chunks of torch's source: most of it, and some that is held out."""
    artifacts = ArtifactStore(folder)
    source = PythonSource(
        packages=["torch"], include=["**/*.py"], exclude=[], max_file_bytes=1e5, validation_fraction=0.1,
        test_fraction=0.025, max_bytes=1e7,
    )  # fmt: skip
    documents = artifacts.build(DocumentsStage(source))
    tokenizer = artifacts.build(TokenizerStage(ByteBPE(16_000, 1e7), documents))
    stages = (TokensStage(documents, tokenizer, split, CHUNK_LENGTH, 0) for split in ("train", "validation"))
    database, queries = (TokenStore(artifacts.build(stage), tokenizer) for stage in stages)
    return database, queries


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
