"""What each cell of a sweep measured, as lines and rows of one figure."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from folders import DATABASE_FOUND, TEST, AddCell, chunk_scores, evaluation
from matplotlib.figure import Figure

from retro_lab.report.build import write_sweep_report
from retro_lab.report.leakage import ALPHAS
from retro_lab.report.style import LOOKS, save
from retro_lab.report.sweep_figures import database_by_cell, neighbors_by_cell, overlap_by_cell, rows_figure
from retro_lab.runs.records import Evaluation, ModelRecord
from retro_lab.runs.sweeps import SweepRecord, load_sweep


def plotted(figure: Figure | None) -> dict[str, list[tuple[float, float]]]:
    assert figure is not None
    assert save(figure, "png")
    return {str(line.get_label()): np.array(line.get_data()).T.tolist() for line in figure.axes[0].get_lines()}


def part(share: float, seed: int | None, tokens: int, bits_per_byte: float) -> Evaluation:
    unit = None if seed is None else "chunk"
    found = replace(DATABASE_FOUND, neighbors=f"{share} {seed}", share=share, seed=seed, tokens=tokens, unit=unit)
    return evaluation(2, bits_per_byte, found=found)


@pytest.fixture
def sweep(sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord):
    """Return a function that adds cells by name, each with a RETRO of these scores, and reads the sweep."""

    def make(cells: dict[str, Sequence[Evaluation]]) -> SweepRecord:
        for name, entries in cells.items():
            add_cell([f"size={name}"], baseline, replace(retro, evaluations=tuple(entries)))
        (sweep_folder / "sweep.json").unlink(missing_ok=True)
        return load_sweep(sweep_folder)

    return make


def test_each_cell_is_a_line_over_the_neighbors_of_its_evaluation(sweep) -> None:
    one = [evaluation(2, 1.9), evaluation(0, 2.1), evaluation(10, 1.8)]
    other = [evaluation(2, 1.7), evaluation(0, 2.0), evaluation(10, 1.75), part(0.5, 0, 700_000, 1.95)]
    found = plotted(neighbors_by_cell(sweep({"a": one, "b": other})))
    assert [list(map(tuple, points)) for points in found.values()] == [
        [(0, 2.1), (2, 1.9), (10, 1.8)],
        [(0, 2.0), (2, 1.7), (10, 1.75)],
    ]
    assert list(found) == ["a", "b"]


def test_random_databases_are_the_mean_over_seeds_and_no_database_is_off(sweep) -> None:
    whole = evaluation(2, 1.7, found=replace(DATABASE_FOUND, tokens=1_400_000))
    parts = [part(0.5, 0, 690_000, 1.8), part(0.5, 1, 710_000, 1.9), part(0.1, None, 140_000, 2.0)]
    other = evaluation(2, 2.5, found=replace(DATABASE_FOUND, source="other", neighbors="other", tokens=1_500_000))
    found = plotted(database_by_cell(sweep({"a": [whole, evaluation(0, 2.1), *parts, other]})))
    [points] = found.values()
    assert np.allclose(points, [(0, 2.1), (140_000, 2.0), (700_000, 1.85), (1_400_000, 1.7)])


def test_overlaps_are_those_of_the_chunks(sweep) -> None:
    entry = evaluation(2, 1.9)
    [points] = plotted(overlap_by_cell(sweep({"a": [entry, evaluation(0, 2.1)]}))).values()
    chunks = chunk_scores(entry)
    assert chunks.overlap is not None
    expected = [(alpha, chunks.bits_per_byte(chunks.overlap <= alpha)) for alpha in ALPHAS]
    assert np.allclose(points, np.array(expected, float))


def test_rows_are_cells_with_their_scores(sweep) -> None:
    found = sweep({"a": [evaluation(2, 1.9), evaluation(0, 2.1)], "b": [evaluation(0, 2.2)]})
    figure = rows_figure(found)
    points = plotted(figure)
    assert points["RETRO[On]"] == [[1.9, 0]]
    assert points["RETRO[Off]"] == [[2.1, 0], [2.2, -1]]
    assert points["Baseline"] == [[2.0, 0], [2.0, -1]]
    assert figure is not None
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_what_few_cells_measured_or_too_many_is_not_drawn(sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [evaluation(2, 1.9), evaluation(0, 2.1)]
    found = sweep({"a": few})
    assert neighbors_by_cell(found) is None
    assert database_by_cell(found) is None
    monkeypatch.setattr("retro_lab.report.sweep_figures.MOST_ROWS", 0)
    assert rows_figure(found) is None
    many = sweep({str(number): [*few, evaluation(10, 1.8)] for number in range(len(LOOKS) + 1)})
    assert neighbors_by_cell(many) is None


def test_the_report_has_the_figures_that_there_are(sweep) -> None:
    other = replace(TEST, name="other", tokens="xyz")
    entries = [evaluation(2, 1.9), evaluation(0, 2.1), evaluation(10, 1.8), evaluation(2, 1.5, text=other)]
    folder = sweep({"x": entries, "y": entries}).folder
    names = {path.stem for path in write_sweep_report(folder).paths if path.suffix == ".svg"}
    assert names == {"sweep", "neighbors", "overlap"}
