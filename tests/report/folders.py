"""Results, run folders and sweep folders as a training leaves them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from retro_lab.runs.chunk_scores import ChunkScores, DocumentScores, write_chunk_scores
from retro_lab.runs.records import (
    CorpusSummary,
    DatabaseSummary,
    DroppedDocuments,
    Evaluation,
    ModelRecord,
    NearestTrainingDocument,
    Provenance,
    Retrieved,
    ScoredText,
    scores_name,
    write_result,
)
from retro_lab.runs.sweeps import write_plan

AddCell = Callable[..., Path]

CORPUS = CorpusSummary(
    source="python_source",
    train_tokens=400_000,
    train_documents=300,
    validation_tokens=90_000,
    validation_documents=12,
    test_tokens=90_000,
    test_documents=12,
    deduplicated=DroppedDocuments(documents=1_234, similarity=0.8),
    decontaminated=None,
    nearest_training_document={"test": NearestTrainingDocument(median=0.0123, largest=0.741)},
)
DATABASE = DatabaseSummary(
    corpus="python_source",
    chunks=22_000,
    tokens=1_400_000,
    fraction=0.5,
    index="Flat",
    chunks_with_neighbors=0.9996,
    training_overlaps={"0.75": 0.4},
    flops=1e13,
)
PROVENANCE = Provenance(
    command="python -m retro_lab +experiment=quickstart",
    date="2026-11-23T12:00:00Z",
    hardware="2 x AMD EPYC, 24 GB",
    commit="abc123",
    versions={"torch": "2.13.0"},
)


TEST = ScoredText(
    name="test",
    description="test split of python_source",
    altered_documents=0,
    tokens="abc",
    sequence_length=128,
    stride=64,
)
DATABASE_FOUND = Retrieved(database="22,000 chunks of python_source (Flat)", source="def", neighbors="012")


def evaluation(
    k: int,
    bits_per_byte: float,
    *,
    size_bytes: int = 300_000,
    text: ScoredText = TEST,
    found: Retrieved = DATABASE_FOUND,
) -> Evaluation:
    """Scores on a held-out text."""
    return Evaluation(
        text=text,
        k=k,
        retrieved=found if k else None,
        bits_per_byte=bits_per_byte,
        perplexity=2 ** (3 * bits_per_byte),
        tokens=90_000,
        bytes=size_bytes,
        documents=12,
        flops_per_byte=1e6 + 695_000 * k,
        scores=scores_name(text, k, found if k else None),
    )


OVERLAPS = (0.0, 0.25, 0.5, 1.0)
"""r(C) of the chunks of each document."""


def chunk_scores(entry: Evaluation, spread: float = 0.1) -> ChunkScores:
    """Scores of each chunk that add up to `entry`, some documents hard and some easy for any model."""
    chunks = len(OVERLAPS) * entry.documents
    tokens, sizes = (
        np.diff(np.linspace(0, total, chunks + 1).astype(np.int64)) for total in (entry.tokens, entry.bytes)
    )
    hard = np.random.default_rng(0).normal(0, 0.5, entry.documents)
    own = np.random.default_rng(entry.k + 1).normal(0, spread, entry.documents)
    moved = (hard - hard.mean() + own - own.mean()).repeat(len(OVERLAPS))
    nats = (entry.bits_per_byte + moved) * math.log(2) * sizes
    nats *= entry.bits_per_byte * math.log(2) * entry.bytes / nats.sum()
    overlap = np.tile(np.float32(OVERLAPS), entry.documents) if entry.retrieved else None
    return ChunkScores(np.arange(entry.documents).repeat(len(OVERLAPS)), nats, tokens, sizes, overlap)


def document_scores(entry: Evaluation) -> DocumentScores:
    """Return the same by document."""
    return chunk_scores(entry).by_document()


def write_models(folder: Path, *models: ModelRecord) -> None:
    """Write results where a training writes them."""
    for model in models:
        for entry in model.evaluations:
            write_chunk_scores(folder / model.model / entry.scores, chunk_scores(entry))
        write_result(folder / model.model / "result.json", model)


def write_grid(folder: Path, axes: dict[str, Sequence[str]], **shared: str) -> None:
    """Write the plan of a sweep over the grid of `axes`."""
    cells = [dict(zip(axes, values, strict=True)) | shared for values in product(*axes.values())]
    write_plan(folder, {cell_name(cell, axes): cell for cell in cells})


def cell_name(cell: Mapping[str, str], axes: Iterable[str]) -> str:
    """Name of a cell's folder."""
    return ",".join(f"{key}={cell[key]}" for key in axes)
