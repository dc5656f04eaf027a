"""Figures hold the values of the records."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from folders import DATABASE_FOUND, AddCell, evaluation, write_models
from matplotlib.figure import Figure

from retro_lab.report.comparison import run_table
from retro_lab.report.figures import curve_figure, database_figure, neighbors_figure, sweep_figure
from retro_lab.report.style import save
from retro_lab.runs.records import ModelRecord, load_run
from retro_lab.runs.sweeps import load_sweep


def plotted(figure: Figure | None) -> dict[str, list[tuple[float, float]]]:
    """Return the plotted points by label."""
    assert figure is not None
    lines = figure.axes[0].get_lines()
    return {str(line.get_label()): list(zip(*line.get_data(), strict=True)) for line in lines}  # type: ignore[arg-type]


def bars(figure: Figure | None) -> dict[float, tuple[float, float]]:
    """Return the intervals that are drawn, by x."""
    assert figure is not None
    drawn = [path for lines in figure.axes[0].collections for path in lines.get_paths()]
    return {x: (low, high) for (x, low), (_, high) in (path.vertices.tolist() for path in drawn)}  # type: ignore[union-attr]


def labels(figure: Figure | None) -> list[str]:
    assert figure is not None
    return [text.get_text() for text in figure.axes[0].texts]


def test_curves_are_those_of_the_records(run_folder: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    figure = curve_figure(load_run(run_folder))
    points = plotted(figure)
    assert points["Baseline"] == [(point.tokens, point.bits_per_byte) for point in baseline.curve]
    assert points["RETRO[On], k=2"] == [(p.tokens, p.bits_per_byte) for p in retro.curve if p.k == 2]
    assert points["RETRO[Off]"] == [(p.tokens, p.bits_per_byte) for p in retro.curve if p.k == 0]
    assert labels(figure) == ["Baseline  2.200", "RETRO[Off]  2.220", "RETRO[On], k=2  2.100"]


def test_labels_never_cover_each_other(run_folder: Path) -> None:
    figure = curve_figure(load_run(run_folder))
    assert figure is not None
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_no_curve_no_figure(run_folder: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    write_models(run_folder, replace(baseline, curve=()), replace(retro, curve=()))
    assert curve_figure(load_run(run_folder)) is None


def _intervals(run_folder: Path) -> dict[int, tuple[float, float]]:
    """Return the interval of each gain of the run's table, by k."""
    table = run_table(load_run(run_folder))
    rows = (dict(zip(table.keys, row, strict=True)) for row in table.rows)
    return {row["k"]: (row["gain_low"], row["gain_high"]) for row in rows if row["k"]}  # type: ignore[misc]


def test_bits_per_byte_against_evaluated_neighbors(run_folder: Path, retro: ModelRecord) -> None:
    assert neighbors_figure(load_run(run_folder)) is None
    write_models(run_folder, replace(retro, evaluations=(*retro.evaluations, evaluation(100, 1.7))))
    figure = neighbors_figure(load_run(run_folder))
    points = plotted(figure)
    assert points["RETRO[On]"] == [(2, 1.9), (100, 1.7)]
    assert points["RETRO[Off]"] == [(0, 2.1), (2, 2.1), (100, 2.1)]
    assert points["Baseline"] == [(0, 2.0), (2, 2.0), (100, 2.0)]
    assert figure is not None
    assert figure.axes[0].get_xscale() == "symlog", "a wide range that starts at 0"
    intervals = _intervals(run_folder)
    expected = {k: pytest.approx((2.0 - high, 2.0 - low)) for k, (low, high) in intervals.items()}
    assert bars(figure) == expected
    assert set(expected) == {2, 100}


def test_bits_per_byte_against_the_size_of_the_database(run_folder: Path, retro: ModelRecord) -> None:
    assert database_figure(load_run(run_folder)) is None
    whole = replace(DATABASE_FOUND, chunks=1000, tokens=10_000)
    first = replace(whole, neighbors="first", tokens=1000, share=0.1)
    filtered = replace(whole, neighbors="filtered", filter="new")
    scores = [evaluation(0, 2.1), evaluation(2, 1.8, found=whole), evaluation(2, 1.95, found=first)]
    for seed, level in enumerate((1.9, 1.94, 1.86)):
        drawn = {
            "share": 0.5,
            "seed": seed,
            "unit": "chunk",
            "tokens": 5000 + 10 * seed,
            "database": f"half, seed {seed}",
        }
        scores.append(evaluation(2, level, found=replace(whole, neighbors=f"{seed}", **drawn)))  # type: ignore[arg-type]
    write_models(run_folder, replace(retro, evaluations=(*scores, evaluation(2, 1.99, found=filtered))))
    figure = database_figure(load_run(run_folder))
    points = plotted(figure)
    assert points["RETRO[On]"] == [(1000, 1.95), (10_000, 1.8)]
    assert points["Random chunks"] == [(5010, pytest.approx(1.9)), (10_000, 1.8)]
    assert points["RETRO[Off]"] == [(x, 2.1) for x in (1000, 5010, 10_000)]
    assert figure is not None
    [band] = [shape for shape in figure.axes[0].collections if type(shape).__name__ == "FillBetweenPolyCollection"]
    corners = {tuple(corner) for path in band.get_paths() for corner in path.vertices.tolist()}  # type: ignore[union-attr]
    assert {(5010, 1.86), (5010, 1.94), (10_000, 1.8)} == corners


def test_labels_of_ticks_do_not_cover_each_other(run_folder: Path, retro: ModelRecord) -> None:
    sizes = (1000, 5000, 5100, 9000, 10_000)
    found = [replace(DATABASE_FOUND, neighbors=f"{size}", tokens=size, share=size / 10_000) for size in sizes]
    scores = [evaluation(2, 1.9, found=each) for each in found]
    write_models(run_folder, replace(retro, evaluations=tuple(scores)))
    figure = database_figure(load_run(run_folder))
    assert figure is not None
    figure.draw_without_rendering()
    shown = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert [label.get_text() for label in shown] == ["1k", "5.1k", "9k", "10k"]
    boxes = [label.get_window_extent() for label in shown]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_a_sweep_of_one_number_is_drawn_against_it(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    add_cell(["retrieval.k=0"], baseline)
    for k, score in ((10, 1.8), (2, 1.9)):
        cell = replace(retro, k=k, evaluations=(evaluation(k, score), evaluation(0, score + 0.2)))
        add_cell([f"retrieval.k={k}"], cell)
    (sweep_folder / "sweep.json").unlink()
    figure = sweep_figure(load_sweep(sweep_folder))
    points = plotted(figure)
    assert points["RETRO[On]"] == [(2, 1.9), (10, 1.8)]
    assert [y for _, y in points["RETRO[Off]"]] == pytest.approx([2.1, 2.0])
    assert points["Baseline"] == [(0, 2.0), (2, 2.0), (10, 2.0)]
    assert set(bars(figure)) == {2, 10}
    assert all(
        low < score < high for (low, high), (_, score) in zip(bars(figure).values(), points["RETRO[On]"], strict=True)
    )
    assert figure is not None
    assert figure.axes[0].get_xlabel() == "retrieval.k"
    marked = [line.get_markevery() for line in figure.axes[0].get_lines() if line.get_label() == "Baseline"]
    assert marked == [[0]], "only the trained baseline is a measurement"


def test_sizes_are_drawn_at_their_parameters(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    add_cell(["size=small"], baseline, retro)
    large = replace(retro.parameters, non_embedding=400_000_000)
    add_cell(["size=large"], replace(retro, parameters=large))
    (sweep_folder / "sweep.json").unlink()
    figure = sweep_figure(load_sweep(sweep_folder))
    assert {x for x, _ in plotted(figure)["RETRO[On]"]} == {5_200_000, 400_000_000}
    assert figure is not None
    assert figure.axes[0].get_xscale() == "log"


@pytest.mark.parametrize("overrides", [["a=x", "b=1"], ["a=x"]])
def test_names_and_several_axes_are_not_drawn(
    sweep_folder: Path, add_cell: AddCell, retro: ModelRecord, overrides: list[str]
) -> None:
    add_cell(overrides, retro)
    add_cell(["a=y"], retro)
    (sweep_folder / "sweep.json").unlink()
    assert sweep_figure(load_sweep(sweep_folder)) is None


def test_dollar_signs_are_no_formula(sweep_folder: Path, add_cell: AddCell, retro: ModelRecord) -> None:
    for value in (1, 2):
        add_cell([rf"$\bad${{x}}$={value}"], retro)
    (sweep_folder / "sweep.json").unlink()
    figure = sweep_figure(load_sweep(sweep_folder))
    assert figure is not None
    assert save(figure, "svg")
