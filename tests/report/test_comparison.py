"""Numbers in the tables come from the records, and gains are compared with the right baseline."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from folders import DATABASE_FOUND, TEST, AddCell, document_scores, evaluation, write_grid, write_models
from rich.console import Console

from retro_lab.evaluation.intervals import gain_interval
from retro_lab.report.comparison import cell_baseline, run_table
from retro_lab.report.leakage import run_leakage
from retro_lab.report.parts import part_caveats
from retro_lab.report.seeds import seed_sentences
from retro_lab.report.sweep_tables import sweep_table
from retro_lab.report.tables import Table
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.records import Evaluation, ModelRecord, load_run
from retro_lab.runs.sweeps import load_sweep


def by_key(table: Table) -> list[dict[str, Any]]:
    """Rows as values by column key."""
    return [dict(zip(table.keys, row, strict=True)) for row in table.rows]


def test_a_run_compares_baseline_off_and_on(run_folder: Path) -> None:
    baseline, off, on = by_key(run_table(load_run(run_folder)))
    assert [row["model"] for row in (baseline, off, on)] == ["Baseline", "RETRO[Off]", "RETRO[On]"]
    assert [row["bits_per_byte"] for row in (baseline, off, on)] == [2.0, 2.1, 1.9]
    assert [row["k"] for row in (baseline, off, on)] == [0, 0, 2]
    assert baseline["gain_percent"] is None
    assert off["gain_bits_per_byte"] == pytest.approx(-0.1)
    assert off["gain_percent"] == pytest.approx(-5)
    assert on["gain_bits_per_byte"] == pytest.approx(0.1)
    assert on["gain_percent"] == pytest.approx(5)
    assert (on["parameters"], on["non_embedding_parameters"]) == (6_500_000, 5_200_000)
    assert on["training_tokens"] == 1_000_000


def test_a_gain_has_the_interval_of_its_documents(run_folder: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    table = run_table(load_run(run_folder))
    alone, off, on = by_key(table)
    reference = document_scores(baseline.evaluations[0])
    for row, entry in ((on, retro.evaluations[0]), (off, retro.evaluations[1])):
        expected = gain_interval(document_scores(entry), reference)
        assert (row["gain_low"], row["gain_high"]) == expected
    assert on["gain_low"] < on["gain_bits_per_byte"] < on["gain_high"]
    assert (alone["gain_low"], alone["gain_high"]) == (None, None)
    shown = f"+0.100 [{on['gain_low']:+.3f}, {on['gain_high']:+.3f}]"
    assert shown in table.texts()[2]
    assert shown in table.to_markdown()
    header, *_, last = csv.reader(io.StringIO(table.to_csv()))
    assert float(dict(zip(header, last, strict=True))["gain_low"]) == on["gain_low"]


def test_a_single_document_has_a_gain_without_an_interval(
    run_folder: Path, baseline: ModelRecord, retro: ModelRecord
) -> None:
    one = [replace(model, evaluations=_of_one_document(model)) for model in (baseline, retro)]
    write_models(run_folder, *one)
    table = run_table(load_run(run_folder))
    on = by_key(table)[2]
    assert (on["gain_bits_per_byte"], on["gain_low"], on["gain_high"]) == (pytest.approx(0.1), None, None)
    assert "+0.100" in table.texts()[2]


def _of_one_document(model: ModelRecord) -> tuple[Evaluation, ...]:
    return tuple(replace(entry, documents=1) for entry in model.evaluations)


def test_compute_stands_beside_tokens(run_folder: Path) -> None:
    alone, off, on = by_key(run_table(load_run(run_folder)))
    assert [row["flops_per_byte"] for row in (alone, off, on)] == [1e6, 1e6, 2.39e6]
    assert [row["training_flops"] for row in (alone, off, on)] == [3e12, 7.17e12, 7.17e12]


def test_the_longer_baseline_has_a_row_and_a_gain_over_it_a_column(run_folder: Path, longer: ModelRecord) -> None:
    write_models(run_folder, longer)
    table = run_table(load_run(run_folder))
    first, second, off, on = by_key(table)
    assert [row["model"] for row in (first, second)] == ["Baseline", "Baseline, same FLOPs"]
    assert second["training_flops"] == on["training_flops"]
    assert second["gain_bits_per_byte"] == pytest.approx(0.05)
    assert [row["gain_same_flops"] for row in (first, second, off, on)] == [
        None,
        None,
        pytest.approx(-0.15),
        pytest.approx(0.05),
    ]
    assert on["gain_same_flops_low"] < on["gain_same_flops"] < on["gain_same_flops_high"]
    assert "Gain, same FLOPs" in table.to_markdown()


def test_names_stay_whole_on_80_characters(
    run_folder: Path, sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    add_cell(["retrieval.k=0", "+sweep=neighbors", "seed=3"], baseline)
    add_cell(["retrieval.k=2", "+sweep=neighbors", "seed=3"], retro)
    run, sweep = run_table(load_run(run_folder)), sweep_table(load_sweep(sweep_folder))
    for table, names in ((run, ("RETRO[Off]", "Baseline", "+5.0%")), (sweep, ("retrieval.k", "missing"))):
        console = Console(width=80, file=io.StringIO(), color_system=None)
        console.print(table.to_rich())
        assert isinstance(console.file, io.StringIO)
        printed = console.file.getvalue()
        assert max(map(len, printed.splitlines())) <= 80
        interval = next(row for row in by_key(table) if row["gain_low"] is not None and row["gain_low"] > 0)
        for text in (
            *names,
            "+0.100",
            "2.39" + "M" * (table is run),
            f"[{interval['gain_low']:+.3f}, {interval['gain_high']:+.3f}]",
        ):
            assert text in printed


def test_other_numbers_of_neighbors_get_rows_of_their_own(run_folder: Path, retro: ModelRecord) -> None:
    write_models(run_folder, replace(retro, evaluations=(*retro.evaluations, evaluation(10, 1.8), evaluation(4, 1.85))))
    rows = by_key(run_table(load_run(run_folder)))
    assert [(row["model"], row["bits_per_byte"]) for row in rows[3:]] == [
        ("RETRO[On], k=4", 1.85),
        ("RETRO[On], k=10", 1.8),
    ]


def test_what_was_not_measured_is_a_dash(run_folder: Path, retro: ModelRecord) -> None:
    write_models(run_folder, replace(retro, evaluations=(evaluation(0, 2.1),)))
    on = run_table(load_run(run_folder)).texts()[2]
    assert on == ["RETRO[On]", "6.5M", "5.2M", "1M", "7.17T", "2", "–", "–", "–", "–", "–"]


def test_scores_on_different_text_have_no_gain(run_folder: Path, retro: ModelRecord) -> None:
    write_models(run_folder, replace(retro, evaluations=(evaluation(2, 1.9, size_bytes=299_999),)))
    on = by_key(run_table(load_run(run_folder)))[2]
    assert on["bits_per_byte"] == 1.9
    for key in ("gain_percent", "gain_low", "gain_high"):
        assert on[key] is None


def test_a_sweep_has_a_row_for_each_cell_in_the_order_of_its_numbers(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    common = ["+sweep=neighbors", "seed=3"]
    add_cell(["retrieval.k=10", *common], error="no memory")
    add_cell(["retrieval.k=2", *common], retro)
    add_cell(["retrieval.k=0", *common], baseline)
    rows = by_key(sweep_table(load_sweep(sweep_folder)))
    assert [(row["retrieval.k"], row["status"]) for row in rows] == [
        ("0", "done"),
        ("2", "done"),
        ("4", "missing"),
        ("10", "failed"),
    ]
    assert (rows[0]["baseline_bits_per_byte"], rows[0]["on_bits_per_byte"]) == (2.0, None)
    assert (rows[1]["off_bits_per_byte"], rows[1]["on_bits_per_byte"]) == (2.1, 1.9)
    assert (rows[1]["baseline_bits_per_byte"], rows[1]["gain_percent"]) == (2.0, pytest.approx(5))
    expected = gain_interval(*(document_scores(model.evaluations[0]) for model in (retro, baseline)))
    assert (rows[1]["gain_low"], rows[1]["gain_high"], rows[1]["flops_ratio"]) == (*expected, 2.39)
    assert set(rows[2].values()) == {"4", "missing", None}


def test_a_gain_is_measured_from_the_baseline_that_differs_in_one_axis(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    write_grid(sweep_folder, {"model.dropout": ["0", "0.1"], "retrieval.k": ["0", "2"]})
    for dropout, level in (("0", 2.0), ("0.1", 2.4)):
        add_cell([f"model.dropout={dropout}", "retrieval.k=0"], replace(baseline, evaluations=(evaluation(0, level),)))
        add_cell([f"model.dropout={dropout}", "retrieval.k=2"], retro)
    rows = by_key(sweep_table(load_sweep(sweep_folder)))
    assert [row["gain_bits_per_byte"] for row in rows] == [None, pytest.approx(0.1), None, pytest.approx(0.5)]


def test_a_baseline_of_another_size_is_no_reference(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    write_grid(sweep_folder, {"size": ["tiny", "small"]})
    add_cell(["size=tiny"], baseline)
    add_cell(["size=small"], replace(retro, size="small"))
    sweep = load_sweep(sweep_folder)
    assert cell_baseline(sweep, sweep.cells[1]) is None


def test_a_cell_prefers_its_own_baseline(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    own = replace(baseline, evaluations=(evaluation(0, 3.8),))
    add_cell(["retrieval.k=0"], baseline)
    add_cell(["retrieval.k=2"], own, retro)
    row = next(row for row in by_key(sweep_table(load_sweep(sweep_folder))) if row["gain_percent"] is not None)
    assert row["gain_percent"] == pytest.approx(50)


def test_texts_and_databases_have_rows_of_their_own_and_are_explained(
    run_folder: Path, baseline: ModelRecord, retro: ModelRecord
) -> None:
    mine = replace(TEST, name="mine", description="test split of mine (other.jsonl)", tokens="xyz")
    other = replace(DATABASE_FOUND, database="9 chunks of mine (Flat)", source="mine", neighbors="345")
    retro_scores = (*retro.evaluations, evaluation(2, 1.7, found=other), evaluation(2, 2.7, text=mine))
    write_models(
        run_folder,
        replace(baseline, evaluations=(*baseline.evaluations, evaluation(0, 3.0, text=mine))),
        replace(retro, evaluations=retro_scores),
    )
    table = run_table(load_run(run_folder))
    found = [(row["text"], row["model"], row["bits_per_byte"], row["gain_percent"]) for row in by_key(table)]
    first, second = DATABASE_FOUND.database, other.database
    assert found == [
        ("test", "Baseline", 2.0, None),
        ("test", "RETRO[Off]", 2.1, pytest.approx(-5)),
        ("test", f"RETRO[On], {first}", 1.9, pytest.approx(5)),
        ("test", f"RETRO[On], {second}", 1.7, pytest.approx(15)),
        ("mine", "Baseline", 3.0, None),
        ("mine", "RETRO[Off]", None, None),
        ("mine", f"RETRO[On], {first}", 2.7, pytest.approx(10)),
    ]
    assert "mine: test split of mine (other.jsonl), in windows of 128 tokens every 64." in table.notes
    assert f"Database: {first}; {second}." in table.notes


def test_parts_of_a_database_and_filters_have_rows_and_seeds_share_one(
    run_folder: Path, baseline: ModelRecord, retro: ModelRecord
) -> None:
    found = [
        replace(DATABASE_FOUND, neighbors="first", share=0.125, database="an eighth"),
        replace(DATABASE_FOUND, neighbors="new", filter="new", complete=0.5, database="filtered"),
        replace(DATABASE_FOUND, neighbors="7", share=0.1, seed=7, unit="document", database="a tenth, seed 7"),
    ]
    scores = [evaluation(2, 1.92 + number / 100, found=each) for number, each in enumerate(found)]
    for seed, level in ((0, 1.9), (1, 1.8)):
        part = replace(
            DATABASE_FOUND, neighbors=f"{seed}", share=0.5, seed=seed, unit="chunk", complete=0.9 - seed / 10
        )
        part = replace(part, database=f"half, seed {seed}", complete_above=0.6)
        scores.append(evaluation(2, level, found=part))
    write_models(run_folder, baseline, replace(retro, evaluations=(*retro.evaluations, *scores)))
    run = load_run(run_folder)
    table = run_table(run)
    rows = by_key(table)[2:]
    assert [(row["model"], row["bits_per_byte"]) for row in rows] == [
        ("RETRO[On]", 1.9),
        ("RETRO[On], 12.5% of the database", 1.92),
        ("RETRO[On], filter new", 1.93),
        ("RETRO[On], 10% of the documents at random, seed 7", 1.94),
        ("RETRO[On], 50% at random, 2 seeds", pytest.approx(1.85)),
    ]
    assert (rows[-1]["bits_per_byte_lowest"], rows[-1]["bits_per_byte_highest"]) == (1.8, 1.9)
    assert {row["bits_per_byte_lowest"] for row in rows[:-1]} == {None}
    assert "1.850 (1.800 to 1.900)" in table.to_markdown()
    # The gain is that of the mean over seeds, and so is its interval.
    assert rows[-1]["gain_bits_per_byte"] == pytest.approx(0.15)
    own = [document_scores(entry) for entry in scores[-2:]]
    mean = replace(own[0], nats=(own[0].nats + own[1].nats) / 2)
    interval = gain_interval(mean, document_scores(baseline.evaluations[0]))
    assert (rows[-1]["gain_low"], rows[-1]["gain_high"]) == interval
    assert rows[-1]["perplexity"] == pytest.approx(2 ** (3 * 1.85))
    said = part_caveats(run.retro.evaluations)  # type: ignore[union-attr]
    assert [sentence.partition(" (raise")[0] for sentence in said] == [
        "test, filter new: k = 2 of the stored neighbors were left for 50.0% of the chunks; the others read fewer than "
        "a search would find",
        "test, 50% at random, 2 seeds: k = 2 of the stored neighbors were left for 80.0% of the chunks; the others "
        "read fewer than a search would find",
    ]
    assert said[1].endswith("Shares above 0.6 are complete.")
    # Only the whole database is in the main score and in the table of leakage.
    assert run.retro is not None
    parts_first = replace(run.retro, evaluations=(*scores, *retro.evaluations))
    assert parts_first.evaluation(2) == retro.evaluations[0]
    assert len(run_leakage(run)) == 1


def test_scores_in_other_windows_are_no_gain(run_folder: Path, retro: ModelRecord) -> None:
    shifted = tuple(replace(entry, text=replace(TEST, stride=32)) for entry in retro.evaluations)
    write_models(run_folder, replace(retro, evaluations=shifted))
    rows = by_key(run_table(load_run(run_folder)))
    assert {row["gain_percent"] for row in rows} == {None}
    assert {row["text"] for row in rows} == {"test", "test (2)"}


def test_seeds_have_a_mean_and_a_spread(tmp_path: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    for seed, level in (("0", 1.9), ("1", 1.8), ("2", 1.7)):
        folder = tmp_path / f"seed={seed}"
        write_models(folder, baseline, replace(retro, evaluations=(evaluation(2, level),)))
        RunFolder(folder, ("+experiment=quickstart", f"seed={seed}")).note()
    write_grid(tmp_path, {"seed": ["0", "1", "2"]})
    assert seed_sentences(load_sweep(tmp_path)) == [
        "mean gain of 3 seeds +0.200, standard deviation 0.100 bits per byte."
    ]
