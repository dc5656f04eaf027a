"""The compute multiplier: what retrieval is worth in FLOPs of the baseline."""

from dataclasses import replace
from pathlib import Path

import pytest
from folders import evaluation, write_models

from retro_lab.report.build import write_run_report
from retro_lab.report.compute import compute_multiplier, compute_sentence
from retro_lab.runs.records import DatabaseSummary, ModelRecord, load_run


def test_a_power_law_gives_the_flops_that_the_baseline_needs(
    run_folder: Path, baseline: ModelRecord, longer: ModelRecord, retro: ModelRecord
) -> None:
    # L = 2 (C / 1e12)^-0.1, of which RETRO is at the point of C = 3e12.
    curve = {flops: 2 * (flops / 1e12) ** -0.1 for flops in (1e12, 2e12, 3e12)}
    first = replace(baseline, flops=1e12, evaluations=(evaluation(0, curve[1e12]),))
    second = replace(longer, flops=2e12, evaluations=(evaluation(0, curve[2e12]),))
    assert retro.database is not None
    database: DatabaseSummary = replace(retro.database, flops=1e12)
    on = replace(retro, flops=2e12, database=database, evaluations=(evaluation(2, curve[3e12]),))
    write_models(run_folder, first, second, on)
    found = compute_multiplier(load_run(run_folder))
    assert found is not None
    assert (found.needed, found.of_training) == (pytest.approx(3e12), pytest.approx(1.5))
    assert found.with_database == pytest.approx(1.0)
    assert found.extrapolated
    sentence = compute_sentence(load_run(run_folder))
    assert sentence is not None
    assert "would need 3T FLOPs to be as good as RETRO[On] (extrapolated by a power law" in sentence
    assert "1.50 times those of RETRO's training, 1.00 times with the embedding" in sentence
    assert sentence in write_run_report(run_folder).tables["comparison"].to_markdown()


def test_no_line_without_two_baselines_of_which_the_longer_is_better(run_folder: Path, longer: ModelRecord) -> None:
    assert compute_sentence(load_run(run_folder)) is None
    write_models(run_folder, replace(longer, evaluations=(evaluation(0, 2.05),)))
    assert compute_sentence(load_run(run_folder)) is None
