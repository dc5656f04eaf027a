"""Claims are decided by the intervals of their comparisons, and each sweep of the paper is held against its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from folders import AddCell, chunk_scores, evaluation, write_grid, write_models

from retro_lab.evaluation.intervals import gain_interval
from retro_lab.report.build import write_sweep_report
from retro_lab.report.claims import Finding, Verdict, find
from retro_lab.report.paper_claims import CLAIMS, paper_claims
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.records import ModelRecord
from retro_lab.runs.sweeps import load_sweep

Scores = dict[str, float]


@pytest.fixture
def grid(tmp_path: Path, baseline: ModelRecord, retro: ModelRecord):
    """Return a function that writes a sweep's cells: what baseline, RETRO[Off] and [On] score in each."""

    def write(sweep: str, axis: str, cells: dict[str, Scores | None], seeds: Sequence[str] = ()) -> Path:
        folder = tmp_path / sweep
        axes = {axis: list(cells)} | ({"seed": seeds} if seeds else {})
        write_grid(folder, axes, sweep=sweep)
        for value, scores in cells.items():
            for seed in seeds or ("0",):
                if scores is None:
                    continue
                name = f"{axis}={value}" + (f",seed={seed}" if seeds else "")
                RunFolder(folder / name, (f"+sweep={sweep}", *name.split(","))).note()
                shift = 0.3 * int(seed)
                entries = [evaluation(k, scores[key] - shift) for key, k in (("on", 2), ("off", 0)) if key in scores]
                models = [replace(retro, size=value, evaluations=tuple(entries))] if entries else []
                if "baseline" in scores:
                    models += [replace(baseline, size=value, evaluations=(evaluation(0, scores["baseline"]),))]
                write_models(folder / name, *models)
        return folder

    return write


def found(folder: Path, says: str) -> Finding:
    sweep = load_sweep(folder)
    [one] = [finding for finding in find(paper_claims(sweep), sweep) if finding.claim.says.startswith(says)]
    return one


GOOD, BAD = {"baseline": 2.0, "off": 2.001, "on": 1.7}, {"baseline": 2.0, "off": 2.3, "on": 2.3}
EVEN = {"baseline": 2.0, "off": 2.0, "on": 1.999}


@pytest.mark.parametrize(
    ("cells", "verdict", "where"),
    [
        ({"a": GOOD, "b": GOOD}, Verdict.holds, ""),
        ({"a": GOOD, "b": BAD}, Verdict.does_not_hold, "size=b"),
        ({"a": EVEN, "b": GOOD}, Verdict.undecided, "size=a"),
        ({"a": EVEN, "b": BAD}, Verdict.does_not_hold, "size=b"),
        ({"a": GOOD, "b": None}, Verdict.not_measured, "size=a"),
        ({"a": BAD, "b": None}, Verdict.does_not_hold, "size=a"),
        ({"a": None, "b": None}, Verdict.not_measured, ""),
    ],
)
def test_a_claim_is_as_good_as_its_worst_comparison(grid, cells, verdict, where) -> None:
    finding = found(grid("table14", "size", cells), "RETRO[On] is better than the baseline.")
    assert finding.verdict is verdict
    assert where in finding.where
    assert (finding.measured, finding.planned) == (sum(scores is not None for scores in cells.values()), 2)


def test_the_difference_and_its_interval_are_those_of_the_gain(grid) -> None:
    finding = found(grid("table14", "size", {"a": GOOD}), "RETRO[On] is better than the baseline.")
    on, baseline = (chunk_scores(evaluation(k, level)).by_document() for k, level in ((2, 1.7), (0, 2.0)))
    assert finding.difference == pytest.approx(0.3)
    assert finding.interval == pytest.approx(gain_interval(on, baseline))


def test_a_model_that_is_as_good_may_be_slightly_worse(grid) -> None:
    says = "RETRO[Off] is at most 1% worse"
    spread = {"baseline": 2.0, "on": 1.7}
    assert found(grid("table14", "size", {"a": GOOD}), says).verdict is Verdict.holds
    assert found(grid("figure1_left", "size", {"a": spread | {"off": 2.5}}), says).verdict is Verdict.does_not_hold


def test_gains_are_compared_between_sizes(grid, tmp_path: Path) -> None:
    says = "The largest size keeps at least 50%"
    kept = {"baseline": 1.6, "off": 1.6, "on": 1.3}
    lost = {"baseline": 1.6, "off": 1.6, "on": 1.59}
    assert found(grid("table14", "size", {"a": GOOD, "b": kept}), says).difference == pytest.approx(0.3 - 0.5 * 0.3)
    assert found(grid("figure6", "size", {"a": GOOD, "b": lost}), says).difference == pytest.approx(0.01 - 0.5 * 0.3)


def test_seeds_are_one_comparison_with_a_wider_interval(grid) -> None:
    says = "RETRO[On] is better than the baseline."
    alone = found(grid("table14", "size", {"a": GOOD}), says)
    seeds = found(grid("figure6", "size", {"a": GOOD}, seeds=["0", "1"]), says)
    assert seeds.planned == 1
    assert seeds.difference == pytest.approx(0.3 + 0.3 / 2)
    assert alone.interval is not None
    assert seeds.interval is not None
    assert seeds.interval.high - seeds.interval.low > alone.interval.high - alone.interval.low


def test_overlap_is_that_of_what_retro_retrieves(grid) -> None:
    finding = found(grid("table14", "size", {"a": GOOD}), "RETRO[On] is better than the baseline on text with little")
    on, baseline = (chunk_scores(evaluation(k, level)) for k, level in ((2, 1.7), (0, 2.0)))
    assert on.overlap is not None
    low = [
        gain_interval(on.by_document(on.overlap <= alpha), baseline.by_document(on.overlap <= alpha))
        for alpha in (0.125, 0.25, 0.5, 0.75)
    ]
    assert finding.planned == 4
    assert finding.interval is not None
    assert finding.interval.low == pytest.approx(min(interval.low for interval in low if interval))


def test_variants_are_compared_with_retro(grid) -> None:
    cells = {"retro": {"on": 1.7, "off": 1.9}, "no_retrieval": {"baseline": 2.0}, "1_neighbor": {"on": 1.5, "off": 1.9}}
    folder = grid("table13", "variant", cells)
    assert found(folder, "Retrieval is better than none").verdict is Verdict.holds
    assert found(folder, "Two neighbors in training are better than one").verdict is Verdict.does_not_hold
    sweep = load_sweep(folder)
    assert {finding.claim.says for finding in find(paper_claims(sweep), sweep)} == {
        "Retrieval is better than none.", "Two neighbors in training are better than one."
    }  # fmt: skip


def test_a_sweep_of_ones_own_is_held_against_nothing(sweep_folder: Path, add_cell: AddCell, retro: ModelRecord) -> None:
    add_cell(["+sweep=neighbors", "retrieval.k=2"], retro)
    assert paper_claims(load_sweep(sweep_folder)) == ()
    assert "claims" not in write_sweep_report(sweep_folder).tables


def test_the_report_states_each_claim_on_its_page_and_in_its_table(grid) -> None:
    written = write_sweep_report(grid("table14", "size", {"a": GOOD, "b": BAD}))
    page, table = written.page.read_text(), (written.page.parent / "tables/claims.md").read_text()
    for text in ("RETRO[On] is better than the baseline.", "does not hold", "size=b"):
        assert text in page
        assert text in table
    assert '<td class="does-not-hold">' in page


def test_every_sweep_that_has_claims_is_shipped() -> None:
    shipped = {path.stem for path in (Path(__file__).parents[2] / "sweeps").glob("*.yaml")}
    assert {name for names, _ in CLAIMS for name in names} <= shipped


def test_scores_of_no_chunk_decide_nothing(grid, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = grid("table14", "size", {"a": GOOD})
    monkeypatch.setattr("retro_lab.report.paper_claims.ALPHAS", (-1.0, 1.0))
    finding = found(folder, "RETRO[On] is better than the baseline on text with little")
    assert (finding.verdict, finding.measured, finding.planned) == (Verdict.not_measured, 0, 1)
    assert np.isnan(finding.difference or np.nan)
