"""Results, run folders and sweep folders as a training leaves them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from retro_lab.runs.records import (
    CorpusSummary,
    DatabaseSummary,
    Evaluation,
    ModelRecord,
    Provenance,
    write_result,
)

AddCell = Callable[..., Path]

CORPUS = CorpusSummary(
    source="python_source", train_tokens=400_000, train_documents=300, validation_tokens=90_000, validation_documents=12
)
DATABASE = DatabaseSummary(chunks=22_000, tokens=1_400_000, fraction=0.5, index="Flat", chunks_with_neighbors=0.9996)
PROVENANCE = Provenance(
    command="python -m retro_lab +experiment=quickstart",
    date="2026-11-23T12:00:00Z",
    hardware="2 x AMD EPYC, 24 GB",
    commit="abc123",
    versions={"torch": "2.13.0"},
)


def evaluation(neighbors: int, bits_per_byte: float, *, size_bytes: int = 300_000) -> Evaluation:
    """Scores on the held-out text."""
    return Evaluation(
        neighbors=neighbors,
        bits_per_byte=bits_per_byte,
        perplexity=2 ** (3 * bits_per_byte),
        tokens=90_000,
        bytes=size_bytes,
        documents=12,
    )


def write_models(folder: Path, *models: ModelRecord) -> None:
    """Write results where a training writes them."""
    for model in models:
        write_result(folder / model.model / "result.json", model)


def write_grid(folder: Path, params: dict[str, str], task: Sequence[str]) -> None:
    """Write `multirun.yaml` as Hydra's sweeper does."""
    sweeper = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": params}
    OmegaConf.save(
        OmegaConf.create({"hydra": {"sweeper": sweeper, "overrides": {"task": list(task)}}}), folder / "multirun.yaml"
    )
