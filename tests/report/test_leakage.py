"""The gain on chunks that have little in common with their neighbors, and what is said of it."""

import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import DATABASE_FOUND, TEST, evaluation, write_models
from rich.console import Console

from retro_lab.report.caveats import run_caveats
from retro_lab.report.comparison import run_table
from retro_lab.report.leakage import ALPHAS, copy_sentences, leakage_sentences, leakage_table, run_leakage
from retro_lab.report.overlap_figures import histogram_figure, leakage_figure, overlap_figure
from retro_lab.report.tables import Table
from retro_lab.runs.chunk_scores import ChunkScores, write_chunk_scores
from retro_lab.runs.records import Evaluation, ModelRecord, load_run, write_result

Saved = Callable[[np.ndarray], np.ndarray | float]
"""Bits per byte that RETRO[On] saves on chunks, from their overlaps."""
OVERLAPS = (0.0, 0.1, 0.2, 0.4, 0.6, 1.0)
"""r(C) of the chunks of each document."""


def keyed(table: Table | None, key: str) -> dict[Any, dict[str, Any]]:
    """Return the rows of a table, each as values by column, by one of their values."""
    assert table is not None
    rows = [dict(zip(table.keys, row, strict=True)) for row in table.rows]
    return {row[key]: row for row in rows}


def write_run(
    folder: Path,
    baseline: ModelRecord,
    retro: ModelRecord,
    saved: Saved,
    documents: int = 40,
    overlaps: tuple[float, ...] = OVERLAPS,
    off: Saved = lambda overlap: -0.1,
) -> dict[str, ChunkScores]:
    """Write a run whose RETRO[On] is better than its baseline by `saved`, give or take a bit; RETRO[Off] by `off`.

    Returns:
        The scores of `baseline`, `off` and `on`.
    """
    random = np.random.default_rng(0)
    overlap = np.tile(np.float32(overlaps), documents)
    sizes = random.integers(100, 300, len(overlap))
    hard = random.normal(2, 0.3, len(sizes))
    own = hard - saved(overlap) + random.normal(0, 0.05, len(sizes))
    scores, entries = {}, {}
    for name, level, k in (("baseline", hard, 0), ("off", hard - off(overlap), 0), ("on", own, retro.k)):
        scores[name] = ChunkScores(
            document=np.arange(documents).repeat(len(overlaps)),
            nats=level * math.log(2) * sizes,
            tokens=sizes // 4,
            bytes=sizes,
            overlap=overlap if k else None,
        )
        counts = {"documents": documents, "bytes": int(sizes.sum()), "tokens": int((sizes // 4).sum())}
        entries[name] = replace(evaluation(k, scores[name].bits_per_byte() or 0), **counts)
        model = "baseline" if name == "baseline" else "retro"
        write_chunk_scores(folder / model / entries[name].scores, scores[name])
    write_result(folder / "baseline" / "result.json", replace(baseline, evaluations=(entries["baseline"],)))
    write_result(folder / "retro" / "result.json", replace(retro, evaluations=(entries["on"], entries["off"])))
    return scores


def test_rows_are_what_a_loop_over_the_chunks_finds(tmp_path: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    written = write_run(tmp_path, baseline, retro, lambda overlap: overlap / 2)
    rows = keyed(leakage_table(run_leakage(load_run(tmp_path))), "alpha")
    overlaps = written["on"].overlap
    assert overlaps is not None
    assert tuple(rows) == ALPHAS
    for alpha, row in rows.items():
        bits, size = dict.fromkeys(written, 0.0), 0
        for i, overlap in enumerate(overlaps.tolist()):
            if overlap <= alpha:
                size += int(written["on"].bytes[i])
                for name, scores in written.items():
                    bits[name] += scores.nats[i] / math.log(2)
        for name in written:
            assert row[f"{name}_bits_per_byte"] == pytest.approx(bits[name] / size, rel=1e-12)
        assert row["byte_share"] == size / written["on"].bytes.sum()
        saved = bits["baseline"] - bits["on"]
        assert row["gain_bits_per_byte"] == pytest.approx(saved / size, rel=1e-9)
        assert row["gain_percent"] == pytest.approx(100 * saved / bits["baseline"], rel=1e-9)
        assert row["gain_low"] < saved / size < row["gain_high"]


def test_all_chunks_are_the_comparison_to_the_last_bit(
    tmp_path: Path, baseline: ModelRecord, retro: ModelRecord
) -> None:
    write_run(tmp_path, baseline, retro, lambda overlap: overlap / 2)
    run = load_run(tmp_path)
    whole, rows = keyed(leakage_table(run_leakage(run)), "alpha")[1.0], keyed(run_table(run), "model")
    for column, name in (("baseline", "Baseline"), ("off", "RETRO[Off]"), ("on", "RETRO[On]")):
        assert whole[f"{column}_bits_per_byte"] == rows[name]["bits_per_byte"]
    for key in ("gain_bits_per_byte", "gain_low", "gain_high", "gain_percent"):
        assert whole[key] == rows["RETRO[On]"][key]


WORSE, DOUBTFUL = r"RETRO\[On\] is worse than the baseline", "it is not distinguishable from zero"
SAID: list[tuple[Saved, str]] = [
    (
        lambda overlap: 0.2,
        r"The gain does not need copied text: .* already at r\(C\) <= 0\.125 \(\d+\.\d% of the text\)",
    ),
    (
        lambda overlap: np.where(overlap > 0.3, 0.6, 0),
        rf"The gain begins at r\(C\) <= 0\.5 \(.*\): at r\(C\) <= 0\.25 \(.*\) {DOUBTFUL}",
    ),
    (
        lambda overlap: np.where(overlap == 1, 2.0, -0.2),
        rf"All of the gain comes from chunks that lie .* in a neighbor: at r\(C\) <= 0\.75 \(.*\) {WORSE}",
    ),
    (
        lambda overlap: np.where(overlap == 1, 1.0, -0.004),
        rf"All of the gain comes from chunks that lie .* in a neighbor: at r\(C\) <= 0\.75 \(.*\) {DOUBTFUL}",
    ),
    (
        lambda overlap: np.where(overlap == 1, 1.0, 0.004),
        rf"A gain is certain only with the chunks that .* in a neighbor: at r\(C\) <= 0\.75 \(.*\) {DOUBTFUL}",
    ),
    (lambda overlap: 0.0, r"There is no gain of retrieval at any r\(C\): no interval lies above zero"),
    (lambda overlap: -0.3, rf"There is no gain of retrieval at any r\(C\): {WORSE} on the whole text"),
    (
        lambda overlap: np.where(overlap < 0.3, 0.3, -2.0),
        rf"The gain does not need copied text: .* But at r\(C\) <= 0\.5 \(.*\) {WORSE}",
    ),
]


@pytest.mark.parametrize(("saved", "said"), SAID)
def test_what_is_said_follows_from_the_chunks(
    tmp_path: Path, baseline: ModelRecord, retro: ModelRecord, saved: Saved, said: str
) -> None:
    write_run(tmp_path, baseline, retro, saved)
    run = load_run(tmp_path)
    found = run_leakage(run)
    (sentence,) = leakage_sentences(found)
    assert re.fullmatch(rf"{said}[^.]*\.", sentence), sentence
    table = leakage_table(found)
    assert table is not None
    assert table.notes[-2:] == (sentence, *copy_sentences(found))
    assert {sentence, *copy_sentences(found)} <= set(run_caveats(run, found))


def test_what_is_better_without_neighbors_too_is_not_a_gain_of_retrieval(
    tmp_path: Path, baseline: ModelRecord, retro: ModelRecord
) -> None:
    for on, off, said in (
        (
            0.3,
            lambda overlap: 0.3,
            r"There is no gain of retrieval at any .*: where .* is better .*, RETRO\[Off\] is too\.",
        ),
        (-0.3, lambda overlap: -0.4, r"There is no gain .*, but no worse than RETRO\[Off\]: it pays for learning .*\."),
        (
            0.3,
            lambda overlap: np.where(overlap < 0.5, 0.3, -2.0),
            r"The gain begins at r\(C\) <= 0\.75 .*: at .* it is no gain of retrieval, as RETRO\[Off\] has it too\.",
        ),
    ):
        write_run(tmp_path, baseline, retro, lambda overlap, on=on: on, off=off)
        (sentence,) = leakage_sentences(run_leakage(load_run(tmp_path)))
        assert re.fullmatch(said, sentence), sentence


def test_training_that_sees_more_copies_than_scoring_is_named(
    tmp_path: Path, baseline: ModelRecord, retro: ModelRecord
) -> None:
    assert retro.database is not None
    for share, said in (
        (0.2, "and 16.7% of the scored ones."),
        (0.9, "to copy too much."),
        (0.0, "to copy too little."),
    ):
        database = replace(retro.database, training_overlaps={"0.75": share})
        write_run(tmp_path, baseline, replace(retro, database=database), lambda overlap: 0.3)
        (sentence,) = copy_sentences(run_leakage(load_run(tmp_path)))
        assert sentence.startswith("At least 75% of a chunk stands in one piece of a neighbor for ")
        assert sentence.endswith(said)


def test_levels_without_chunks_are_dashes_and_are_said_to_be(
    tmp_path: Path, baseline: ModelRecord, retro: ModelRecord
) -> None:
    write_run(tmp_path, baseline, retro, lambda overlap: 0.2, overlaps=(0.9, 1.0))
    found = run_leakage(load_run(tmp_path))
    rows = keyed(leakage_table(found), "alpha")
    for alpha in ALPHAS[:-1]:
        assert {value for key, value in rows[alpha].items() if key not in ("alpha", "byte_share")} == {None}
        assert rows[alpha]["byte_share"] == 0
    assert rows[1.0]["gain_low"] > 0
    (sentence,) = leakage_sentences(found)
    assert re.fullmatch(r"All of the gain comes from .*: no chunk has r\(C\) <= 0\.75\.", sentence)


def test_a_single_document_has_levels_and_no_verdict(tmp_path: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    write_run(tmp_path, baseline, retro, lambda overlap: 0.2, documents=1)
    found = run_leakage(load_run(tmp_path))
    assert all(
        row["gain_low"] is None and row["gain_percent"] > 0 for row in keyed(leakage_table(found), "alpha").values()
    )
    assert leakage_sentences(found) == [
        "The scored text is a single document, so from which r(C) on there is a gain cannot be told."
    ]


def test_without_a_baseline_there_are_scores_and_no_gain(
    tmp_path: Path, baseline: ModelRecord, retro: ModelRecord
) -> None:
    write_run(tmp_path, baseline, retro, lambda overlap: 0.2)
    (tmp_path / "baseline" / "result.json").unlink()
    found = run_leakage(load_run(tmp_path))
    table = leakage_table(found)
    assert table is not None
    assert table.keys == ("alpha", "byte_share", "off_bits_per_byte", "on_bits_per_byte")
    assert leakage_sentences(found) == []
    assert leakage_figure(found) is None


def test_what_retrieves_nothing_has_no_leakage(run_folder: Path, retro: ModelRecord) -> None:
    write_models(run_folder, replace(retro, evaluations=(evaluation(0, 2.1),)))
    found = run_leakage(load_run(run_folder))
    assert found == ()
    assert leakage_table(found) is None
    assert leakage_figure(found) is None


def test_texts_and_databases_are_told_apart(run_folder: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    mine = replace(TEST, name="mine", tokens="xyz")
    other = replace(DATABASE_FOUND, database="9 chunks of mine (Flat)", source="mine", neighbors="345")
    more: tuple[Evaluation, ...] = (evaluation(2, 1.7, found=other), evaluation(2, 2.7, text=mine))
    write_models(
        run_folder,
        replace(baseline, evaluations=(*baseline.evaluations, evaluation(0, 3.0, text=mine))),
        replace(retro, evaluations=(*retro.evaluations, *more)),
    )
    found = run_leakage(load_run(run_folder))
    table = leakage_table(found)
    assert table is not None
    whole = [row for row in (dict(zip(table.keys, row, strict=True)) for row in table.rows) if row["alpha"] == 1]
    expected = [
        (f"test, {DATABASE_FOUND.database}", 2.0, 2.1, 1.9),
        (f"test, {other.database}", 2.0, 2.1, 1.7),
        (f"mine, {DATABASE_FOUND.database}", 3.0, None, 2.7),
    ]
    for row, (text, *levels) in zip(whole, expected, strict=True):
        assert row["text"] == text
        found_levels = [row[f"{name}_bits_per_byte"] for name in ("baseline", "off", "on")]
        assert found_levels == [None if level is None else pytest.approx(level) for level in levels]
    sentences = leakage_sentences(found)
    assert [sentence.split(": ")[0] for sentence in sentences] == [text for text, *_ in expected]
    assert printed_width(table) <= 80


def printed_width(table: Table) -> int:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(table.to_rich())
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    for shown in table.texts()[-1][-5:]:  # numbers whole; an interval stands below its gain
        assert all(any(part in line for line in lines) for part in shown.split(" [")), shown
    return max(map(len, lines))


def test_the_table_is_whole_on_80_characters(tmp_path: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    write_run(tmp_path, baseline, retro, lambda overlap: overlap / 2)
    table = leakage_table(run_leakage(load_run(tmp_path)))
    assert table is not None
    assert printed_width(table) <= 80


def test_the_figure_has_the_gains_of_the_table(tmp_path: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    write_run(tmp_path, baseline, retro, lambda overlap: np.where(overlap == 1, 2.0, -0.2))
    found = run_leakage(load_run(tmp_path))
    rows = keyed(leakage_table(found), "alpha").values()
    figure = leakage_figure(found)
    assert figure is not None
    (axes,) = figure.axes
    gains, zero = axes.get_lines()
    points = list(zip(*gains.get_data(), strict=True))  # type: ignore[arg-type]
    assert points == [(row["alpha"], row["gain_bits_per_byte"]) for row in rows]
    assert set(np.asarray(zero.get_ydata())) == {0}
    bars = [path.vertices.tolist() for lines in axes.collections for path in lines.get_paths()]  # type: ignore[union-attr]
    assert bars == [[[row["alpha"], row["gain_low"]], [row["alpha"], row["gain_high"]]] for row in rows]
    low, high = axes.get_ylim()
    assert low < 0 < high


def test_the_scores_by_overlap_are_drawn_for_each_text(
    tmp_path: Path, baseline: ModelRecord, retro: ModelRecord
) -> None:
    write_run(tmp_path, baseline, retro, lambda overlap: overlap / 2)
    (found,) = run_leakage(load_run(tmp_path))
    rows = keyed(leakage_table([found]), "alpha").values()
    drawn = {line.get_label(): line.get_ydata() for line in overlap_figure(found).axes[0].get_lines()}
    for name, label in (("baseline", "Baseline"), ("off", "RETRO[Off]"), ("on", "RETRO[On]")):
        assert list(drawn[label]) == [row[f"{name}_bits_per_byte"] for row in rows]


def test_the_histogram_counts_each_chunk_once(tmp_path: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    write_run(tmp_path, baseline, retro, lambda overlap: 0.0, overlaps=(0.0, 0.0, 0.1, 0.125, 0.5, 0.51, 1.0, 1.0))
    (found,) = run_leakage(load_run(tmp_path))
    assert found.shares == (0.25, 0.25, 0, 0, 0.125, 0.125, 0, 0, 0.25)
    (line,) = histogram_figure([found]).axes[0].get_lines()
    assert tuple(np.asarray(line.get_ydata())) == found.shares
