"""How fast chunks are compared with their neighbors for the measure of leakage (Borgeaud et al. 2022, Sec. 2.6).

    python benchmarks/leakage.py

The chunks are of real Python source, and their neighbors those of BM25, which share the most tokens. Beside ours are
the dynamic program, a row of all neighbors at a time in NumPy, and Python's `difflib`. All must agree. They take
turns on one thread; a ratio is of medians.
"""

import argparse
import tempfile
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import torch
from python_stores import python_stores
from side_by_side import Clock, origin

from retro_lab import console
from retro_lab.retrieval.bm25 import BM25
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.overlaps import COMPARED
from retro_lab.retrieval.searchers import BM25Searcher
from retro_lab.retrieval.sequences import Retrieved
from retro_lab.retrieval.substrings import longest_common_substrings

OURS = "retro_lab"
DYNAMIC = "dynamic program, NumPy"
DIFFLIB = "difflib"
SHARES = {OURS: 1, DYNAMIC: 8, DIFFLIB: 64}
"""The slow ones take so many times fewer chunks in a turn."""

Chunks = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Tokens and lengths of chunks, then of neighbors, as `longest_common_substrings` takes them."""


def main() -> None:
    """Measure, print the table and, with `--out`, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for leakage.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console.quiet()
    lines = [
        f"# Leakage\n\n{origin(torch.device('cpu'))}\n",
        f"| Chunks | Neighbors | Contestant | Chunks per second | {OURS} is times as fast |",
        "| :-- | :-- | :-- | --: | --: |",
    ]
    for m in (64, 16):
        chunks, marker = real_chunks(arguments.chunks, m)
        rates = measure(chunks, marker, arguments.rounds)
        lines += [
            f"| {m} tokens | {COMPARED} of {2 * m} | {name} | {rate:,.0f} | {rates[OURS] / rate:,.1f} |"
            for name, rate in rates.items()
        ]
    report = "\n".join(lines) + "\n"
    print(report, end="")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "leakage.md").write_text(report, encoding="utf-8")


def real_chunks(count: int, m: int) -> tuple[Chunks, int]:
    """Take chunks of torch's source, byte-level BPE of 16,000 ids, with their neighbors; also the document marker."""
    with tempfile.TemporaryDirectory() as folder:
        database, queries = python_stores(Path(folder), m)
        rows = np.random.default_rng(0).choice(queries.chunks, min(count, queries.chunks), replace=False)
        searcher = BM25Searcher(queries, BM25(database, 1.5, 0.75), 0, database.chunks)
        searcher.open()
        ids = np.empty((queries.chunks, COMPARED), np.int64)
        ids[rows] = searcher.search(rows, COMPARED, 1)[1]
        found = Retrieved(database, ids, Value.neighbor_and_continuation).read(rows, COMPARED)
        return (queries.read(rows), queries.real_tokens(rows), *found), queries.tokenizer.document_marker


def measure(chunks: Chunks, marker: int, rounds: int) -> dict[str, float]:
    """Return the chunks per second of each contestant, once they agree."""
    counts = {name: len(chunks[0]) // share for name, share in SHARES.items()}
    parts = {name: tuple(array[:count] for array in chunks) for name, count in counts.items()}
    contestants: dict[str, Callable[[], np.ndarray]] = {
        OURS: lambda: longest_common_substrings(*parts[OURS], marker),
        DYNAMIC: lambda: np.array([by_rows(*chunk, marker) for chunk in zip(*parts[DYNAMIC], strict=True)]),
        DIFFLIB: lambda: np.array([by_difflib(*chunk, marker) for chunk in zip(*parts[DIFFLIB], strict=True)]),
    }
    ours = contestants[OURS]()
    for name, work in contestants.items():
        np.testing.assert_array_equal(work(), ours[: counts[name]])
    seconds = Clock(torch.device("cpu")).in_turns(contestants, rounds)
    return {name: counts[name] / seconds[name] for name in contestants}


def by_rows(chunk: np.ndarray, length: int, neighbors: np.ndarray, lengths: np.ndarray, marker: int) -> int:
    """Find the longest run of a chunk, [m], in its neighbors, [k, r], from the runs that end at each token."""
    k, r = neighbors.shape
    is_token = np.arange(r) < lengths[:, None]
    runs, longest = np.zeros((k, r), np.int64), 0
    for token in chunk[:length]:
        before = np.pad(runs[:, :-1], ((0, 0), (1, 0)))
        runs = np.where((neighbors == token) & (token != marker) & is_token, before + 1, 0)
        longest = max(longest, int(runs.max()))
    return longest


def by_difflib(chunk: np.ndarray, length: int, neighbors: np.ndarray, lengths: np.ndarray, marker: int) -> int:
    """Find the longest run of a chunk, [m], in its neighbors, [k, r], by the standard library."""
    own = [token if token != marker else -1 for token in chunk[:length].tolist()]
    found = (
        SequenceMatcher(None, own, one[:n].tolist(), autojunk=False) for one, n in zip(neighbors, lengths, strict=True)
    )
    return max(matcher.find_longest_match().size for matcher in found)


if __name__ == "__main__":
    main()
