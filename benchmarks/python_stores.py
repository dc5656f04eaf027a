"""Real chunks to measure with: torch's own source, in byte-level BPE of 16,000 ids."""

from pathlib import Path

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.sources.python_source import PythonSource
from retro_lab.corpus.tokenizer import ByteBPE
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage, TokenStore


def python_stores(folder: Path, chunk_length: int, max_bytes: float = 1e7) -> tuple[TokenStore, TokenStore]:
    """Build two token stores in `folder`: most of the source, up to `max_bytes` of it, and some that is held out."""
    artifacts = ArtifactStore(folder)
    source = PythonSource(
        packages=["torch"], include=["**/*.py"], exclude=[], max_file_bytes=1e5, validation_fraction=0.1,
        test_fraction=0.025, max_bytes=max_bytes,
    )  # fmt: skip
    documents = artifacts.build(DocumentsStage(source))
    tokenizer = artifacts.build(TokenizerStage(ByteBPE(16_000, 1e7), documents))
    stages = (TokensStage(documents, tokenizer, split, chunk_length, 0) for split in ("train", "validation"))
    database, queries = (TokenStore(artifacts.build(stage), tokenizer) for stage in stages)
    return database, queries
