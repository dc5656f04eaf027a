"""How fast and how large indexes over real chunk embeddings are, and how that compares.

    python -m retro_lab +experiment=large_database task=build      embeds the chunks; once
    python benchmarks/index.py                                     families of FAISS indexes
    python benchmarks/index.py --peer                              beside ScaNN, from `make benchmarks/.venv-scann`

Each contestant is a process of its own, on the same vectors, queries and threads. They search in turns, and a ratio is
of medians. Seconds are processor seconds. All are tuned on the same held-out queries for a recall@10 of 0.95, and a
neighbor that is as near as the tenth of the exact ones counts as found.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from searching import NEIGHBORS, WANTED, Contestant, Facts, Task, serve
from side_by_side import Clock, Row, markdown, origin

from retro_lab.artifacts.manifest import MANIFEST_NAME, Manifest
from retro_lab.artifacts.stage import Artifact
from retro_lab.retrieval import vectors as vector_index
from retro_lab.retrieval.embeddings import Embeddings
from retro_lab.retrieval.factory import choose_factory
from retro_lab.retrieval.vectors import VectorIndex

BATCHES = (64, 128, 256)
COARSE_LISTS, COARSE_SAMPLE, COARSE_ITERATIONS, COARSE_PROBES = 1024, 65_536, 10, 16
SCANN_PYTHON = Path(__file__).parent / ".venv-scann" / "bin" / "python"
INVERTED, CHOSEN, FINER, PEER = "IVF,Flat", "auto", "auto, index.recall=0.99", "ScaNN"


def main() -> None:
    """Measure, print the tables and, with `--out`, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="beside ScaNN")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for index.md")
    parser.add_argument("--serve", nargs=2, metavar=("FACTORY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    if arguments.serve:
        serve_faiss(arguments.serve[0], Task(Path(arguments.serve[1])))
        return

    if arguments.peer and not SCANN_PYTHON.exists():
        sys.exit("ScaNN is not installed; run: make benchmarks/.venv-scann")
    vectors, queries = embeddings(arguments.artifacts, arguments.vectors, arguments.queries)
    sections = [
        f"# Indexes\n\n{origin(torch.device('cpu'))}",
        f"{len(vectors):,} chunk embeddings of width {vectors.shape[1]}, {len(queries):,} held-out chunks as queries.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        task = Task(Path(folder))
        exact = VectorIndex.create("Flat", vectors.shape[1], "l2")
        exact.add(vectors)
        task.write(vectors, queries, exact.search(queries, NEIGHBORS)[1])
        table, rows = compare(task, arguments, *vectors.shape)
        lists = coarse_lists(vectors, task, arguments.rounds)
    rows[-1:-1] = [*small_batches(vectors, queries, arguments.rounds), lists]
    sections += [table, "## Ratios\n\n" + markdown(rows)]
    print("\n\n".join(sections))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "index.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def embeddings(root: Path, vectors: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Read chunk embeddings of the largest training split under `root`, and some of its held-out documents."""
    splits: dict[str, list[Embeddings]] = {"train": [], "validation": []}
    for path in root.glob(f"embeddings/*/{MANIFEST_NAME}"):
        artifact = Artifact(path.parent, Manifest.read(path.parent))
        tokens = Manifest.read(root / "tokens" / artifact.manifest.recipe["inputs"]["tokens"])
        splits[tokens.recipe["settings"]["split"]].append(Embeddings(artifact))
    train = max(splits["train"], key=lambda found: found.chunks, default=None)
    if train is None or train.chunks < vectors or not splits["validation"]:
        sys.exit(
            f"There are no embeddings of {vectors:,} chunks in {root}; "
            "run: python -m retro_lab +experiment=large_database task=build"
        )
    made_from = source(root, train.artifact)
    held_out = next(found for found in splits["validation"] if source(root, found.artifact) == made_from)
    return train.range(0, vectors), held_out.range(0, min(queries, held_out.chunks))


def source(root: Path, artifact: Artifact) -> tuple[object, object]:
    """Return the settings of an embeddings artifact and what its tokens were made from."""
    recipe = artifact.manifest.recipe
    return recipe["settings"], Manifest.read(root / "tokens" / recipe["inputs"]["tokens"]).recipe["inputs"]


def serve_faiss(factory: str, task: Task) -> None:
    """Build a FAISS index as the `index` stage does, tune it, and serve."""
    vectors, queries = task.vectors, task.queries
    start = time.process_time()
    index = VectorIndex.create(factory, vectors.shape[1], "l2")
    if not index.is_trained:
        sample = np.random.default_rng(0).choice(len(vectors), min(65_536, len(vectors)), replace=False)
        index.train(vectors[np.sort(sample)])
    index.add(vectors)
    seconds = time.process_time() - start

    def search(asked: np.ndarray, parameters: str) -> np.ndarray:
        if parameters:
            index.set_parameters(parameters)
        return index.search(asked, NEIGHBORS)[1]

    parameters = index.tune(queries, NEIGHBORS, lambda ids: task.recall(ids, vectors, queries), WANTED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.faiss"
        index.write(path)
        size = path.stat().st_size
    serve(task, Facts(seconds, size / len(vectors), parameters.replace(",", ", ")), search)


def compare(task: Task, arguments: argparse.Namespace, vectors: int, width: int) -> tuple[str, list[Row]]:
    """Let all contestants search in turns; return the table of all and the ratios that are targets."""
    chosen = choose_factory("auto", vectors, width, exact_below=0)
    finer = choose_factory("auto", vectors, width, exact_below=0, recall=0.99)
    cells = chosen.factory.partition(",")[0]
    factories = {
        "Flat": "Flat",
        INVERTED: f"{cells},Flat",
        CHOSEN: chosen.factory,
        FINER: finer.factory,
        "coarser codes": f"{cells},PQ{width // 4}x4fs,Refine(SQ8)",
        "auto, no copy": chosen.factory.partition(",Refine")[0],
        "IVF,SQ8": f"{cells},SQ8",
        "HNSW": "HNSW32,Flat",
    }
    common = [sys.executable, __file__, "--threads", str(arguments.threads), "--serve"]
    commands = {name: [*common, factory, str(task.folder)] for name, factory in factories.items()}
    if arguments.peer:
        scann = [str(SCANN_PYTHON), str(Path(__file__).parent / "scann_index.py")]
        commands[PEER] = [*scann, str(task.folder), cells.removeprefix("IVF"), str(arguments.threads)]
        factories[PEER] = "tree, AH2, reordering"
    contestants = {}
    for name, command in commands.items():
        print(f"building {name}: {factories[name]}", file=sys.stderr, flush=True)
        contestants[name] = Contestant(command)
    rate, recall = {}, {}
    for name, taken in in_turns(contestants, "queries", arguments.rounds).items():
        rate[name] = len(task.queries) / taken
        recall[name] = contestants[name].search("queries")[1]
    lines = [
        f"| Index | | Recall@{NEIGHBORS} | Queries per second | Bytes per vector | Seconds to build | Parameters |",
        "| :-- | :-- | --: | --: | --: | --: | :-- |",
    ]
    for name, contestant in contestants.items():
        facts = contestant.facts
        lines.append(
            f"| {name} | `{factories[name]}` | {recall[name]:.3f} | {rate[name]:,.0f} | {facts.bytes:,.0f} | "
            f"{facts.build:.1f} | {facts.parameters} |"
        )
    rows = [Row("T3", f"queries per second, {CHOSEN}", INVERTED, rate[CHOSEN] / rate[INVERTED], 2.5, 3.4)]
    if arguments.peer:
        ours, theirs = contestants[CHOSEN].facts, contestants[PEER].facts
        rows += [
            Row("T4", f"queries per second, {CHOSEN}", PEER, rate[CHOSEN] / rate[PEER], 1.2, 1.7),
            Row("T5", f"build time, {CHOSEN}", PEER, ours.build / theirs.build, 1 / 3, 1 / 4, True),
            Row("T5", f"bytes per vector, {CHOSEN}", PEER, ours.bytes / theirs.bytes, 1 / 3, 1 / 3.5, True),
        ]
    rows.append(precompute(contestants[INVERTED], contestants[FINER], min(arguments.rounds, 2)))
    for contestant in contestants.values():
        contestant.stop()
    return "\n".join(lines), rows


def in_turns(contestants: Mapping[str, Contestant], what: str, rounds: int) -> dict[str, float]:
    """Return the median seconds of each contestant; all have a turn in each round, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, contestant in contestants.items():
            times[name].append(contestant.search(what)[0])
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def precompute(inverted: Contestant, finer: Contestant, rounds: int) -> Row:
    """Find the neighbors of all chunks, visiting the same inverted lists."""
    lists = inverted.facts.parameters
    recalls = [contestant.search("queries", lists)[1] for contestant in (finer, inverted)]
    taken = in_turns({FINER: finer, INVERTED: inverted}, "vectors", rounds)
    what = f"neighbors of all chunks, {FINER}, {lists}: recall {recalls[0]:.3f} against {recalls[1]:.3f}"
    return Row("T17", what, INVERTED, taken[INVERTED] / taken[FINER], 1.3, 1.8)


def small_batches(vectors: np.ndarray, queries: np.ndarray, rounds: int) -> list[Row]:
    """Search exactly in small batches, with our threshold for matrix products and with that of FAISS."""
    index = VectorIndex.create("Flat", vectors.shape[1], "l2")
    index.add(vectors)
    ours, default = vector_index.BLAS_THRESHOLD, faiss.cvar.distance_compute_blas_threshold

    def search(batch: int, threshold: int) -> None:
        vector_index.BLAS_THRESHOLD = threshold
        for start in range(0, 2 * max(BATCHES), batch):
            index.search(queries[start : start + batch], NEIGHBORS)

    work = {(batch, threshold): partial(search, batch, threshold) for batch in BATCHES for threshold in (ours, default)}
    seconds = Clock(torch.device("cpu")).in_turns(work, rounds)
    vector_index.BLAS_THRESHOLD = ours
    ratio = {batch: seconds[batch, default] / seconds[batch, ours] for batch in BATCHES}
    return [Row("T6", f"Flat, batches of {batch}", "FAISS's default", ratio[batch], 5, 8) for batch in BATCHES]


def coarse_lists(vectors: np.ndarray, task: Task, rounds: int) -> Row:
    """Train the centroids of inverted lists by FAISS's k-means, as the index does, and by its SuperKmeans."""
    sample = vectors[np.random.default_rng(0).choice(len(vectors), min(COARSE_SAMPLE, len(vectors)), replace=False)]
    width = sample.shape[1]

    def train(kind: type) -> np.ndarray:
        clustering = kind(width, COARSE_LISTS, niter=COARSE_ITERATIONS, seed=0)
        clustering.train(sample)
        return clustering.centroids

    def recall(centroids: np.ndarray) -> float:
        quantizer = faiss.IndexFlatL2(width)
        quantizer.add(centroids)
        index = faiss.IndexIVFFlat(quantizer, width, COARSE_LISTS)
        index.add(vectors)
        index.nprobe = COARSE_PROBES
        return task.recall(index.search(task.queries, NEIGHBORS)[1], vectors, task.queries)

    kinds = (faiss.Kmeans, faiss.SuperKmeans)
    recalls = [recall(train(kind)) for kind in kinds]
    seconds = Clock(torch.device("cpu")).in_turns({kind: partial(train, kind) for kind in kinds}, min(rounds, 2))
    what = (
        f"training {COARSE_LISTS:,} lists, SuperKmeans: recall {recalls[1]:.3f} against {recalls[0]:.3f} "
        f"with {COARSE_PROBES} probes"
    )
    return Row("T20", what, "FAISS's k-means", seconds[faiss.Kmeans] / seconds[faiss.SuperKmeans], 1.4, 2)


if __name__ == "__main__":
    main()
