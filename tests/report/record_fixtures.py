"""Records and folders as a training leaves them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from folders import CORPUS, DATABASE, PROVENANCE, AddCell, evaluation, write_grid, write_models

from retro_lab.runs.folder import RunFolder
from retro_lab.runs.records import CurvePoint, ModelRecord, Parameters


@pytest.fixture
def baseline() -> ModelRecord:
    """Return a trained baseline that scores 2.0 bits per byte."""
    return ModelRecord(
        model="baseline",
        size="tiny",
        k=0,
        parameters=Parameters(
            decoder=4_000_000,
            chunked_cross_attention=0,
            encoder=0,
            embeddings=1_000_000,
            non_embedding=4_000_000,
            total=5_000_000,
        ),
        tokens=1_000_000,
        steps=1000,
        flops=3e12,
        seconds=160.2,
        seed=0,
        corpus=CORPUS,
        evaluations=(evaluation(0, 2.0),),
        curve=tuple(
            CurvePoint(tokens=t, k=0, bits_per_byte=2 + 200_000 / t) for t in range(100_000, 1_000_001, 100_000)
        ),
        provenance=PROVENANCE,
    )


@pytest.fixture
def longer(baseline: ModelRecord) -> ModelRecord:
    """Return a baseline with RETRO's training FLOPs, which scores 1.95 bits per byte."""
    return replace(
        baseline,
        model="longer_baseline",
        tokens=2_390_000,
        steps=2390,
        flops=7.17e12,
        evaluations=(evaluation(0, 1.95),),
    )


@pytest.fixture
def retro(baseline: ModelRecord) -> ModelRecord:
    """Return a RETRO trained with k = 2 that scores 1.9 bits per byte, 2.1 without neighbors."""
    return replace(
        baseline,
        model="retro",
        k=2,
        parameters=Parameters(
            decoder=4_000_000,
            chunked_cross_attention=500_000,
            encoder=700_000,
            embeddings=1_300_000,
            non_embedding=5_200_000,
            total=6_500_000,
        ),
        flops=7.17e12,
        seconds=210.5,
        database=DATABASE,
        evaluations=(evaluation(2, 1.9), evaluation(0, 2.1)),
        curve=tuple(
            CurvePoint(tokens=t, k=k, bits_per_byte=level + 200_000 / t)
            for t in range(100_000, 1_000_001, 100_000)
            for k, level in ((2, 1.9), (0, 2.02))
        ),
    )


@pytest.fixture
def run_folder(tmp_path: Path, baseline: ModelRecord, retro: ModelRecord) -> Path:
    """Return a finished run with both models."""
    folder = tmp_path / "quickstart"
    write_models(folder, baseline, retro)
    RunFolder(folder, ("+experiment=quickstart",), {"seed": 7, "retrieval": {"k": 2, "stored": "${seed}"}}).note()
    return folder


@pytest.fixture
def sweep_folder(tmp_path: Path) -> Path:
    """Return the folder of a sweep of `retrieval.k` over 0, 2, 4 and 10, with no cell run yet."""
    folder = tmp_path / "sweeps" / "neighbors"
    folder.mkdir(parents=True)
    write_grid(folder, {"retrieval.k": ["0", "2", "4", "10"]}, sweep="neighbors", seed="3")
    return folder


@pytest.fixture
def add_cell(sweep_folder: Path) -> AddCell:
    """Return a function that adds a cell with these overrides, models and error."""

    def add(overrides: Sequence[str], *models: ModelRecord, error: str | None = None) -> Path:
        shared = ("+sweep=", "seed=")
        folder = sweep_folder / ",".join(text for text in overrides if not text.startswith(shared))
        RunFolder(folder, tuple(overrides)).note()
        write_models(folder, *models)
        if error is not None:
            (folder / "failed.json").write_text(json.dumps({"error": error}))
        return folder

    return add
