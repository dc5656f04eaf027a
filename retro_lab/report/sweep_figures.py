"""Figures of a sweep with several lines or rows: its cells side by side, and what each measured from its one RETRO."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from retro_lab.report import formats
from retro_lab.report.comparison import BASELINE, OFF, ON, cell_scores
from retro_lab.report.leakage import ALPHAS
from retro_lab.report.style import BASELINE_LOOK, LOOKS, OFF_LOOK, ON_LOOK, Line, Mark, Point, draw, draw_rows
from retro_lab.runs.records import RunRecord
from retro_lab.runs.sweeps import Cell, SweepRecord

MOST_ROWS = 40
"""Cells that a figure with a row for each has room for."""
LONGEST_NAME = 24
"""Characters of a label that figures have room for."""

Measure = Callable[[RunRecord], Sequence[Point]]


def rows_figure(sweep: SweepRecord) -> Figure | None:
    """Draw a row of scores for each cell; None for one cell, for too many, or for none that has a score."""
    rows = []
    for cell in sweep.cells:
        scores = zip((BASELINE_LOOK, OFF_LOOK, ON_LOOK), (BASELINE, OFF, ON), cell_scores(sweep, cell), strict=True)
        marks = [Mark(label, scored.entry.bits_per_byte, look) for look, label, scored in scores if scored]
        rows.append((_name(sweep, cell), marks))
    if not 1 < len(rows) <= MOST_ROWS or not any(marks for _, marks in rows):
        return None
    return draw_rows("Held-out text", rows)


def neighbors_by_cell(sweep: SweepRecord) -> Figure | None:
    """Draw bits per byte against the k of the evaluation (Figure 1, right), a line for each cell."""

    def measure(run: RunRecord) -> Sequence[Point]:
        assert run.retro is not None
        entries = [entry for entry in run.retro.evaluations if entry.text == run.retro.main_text]
        first = next((entry.retrieved for entry in entries if entry.retrieved and entry.retrieved.is_whole), None)
        return [(entry.k, entry.bits_per_byte) for entry in entries if entry.retrieved in (None, first)]

    return _by_cell(sweep, measure, "Neighbors in evaluation", "Neighbors retrieved for each chunk", fewest=3)


def database_by_cell(sweep: SweepRecord) -> Figure | None:
    """Draw bits per byte against the tokens of the database (Figure 1, middle), a line for each cell.

    Random parts of the same share are drawn as the mean over their seeds; without neighbors the database has no tokens.
    """

    def measure(run: RunRecord) -> Sequence[Point]:
        assert run.retro is not None
        off, on = run.retro.evaluation(0), run.retro.evaluation(run.retro.k)
        if on is None or on.retrieved is None:
            return []
        parts = defaultdict[object, list[Point]](list)
        for entry in run.retro.evaluations:
            found = entry.retrieved
            alike = (entry.text, entry.k) == (on.text, on.k) and found and found.source == on.retrieved.source
            if alike and found and found.tokens and not found.filter:
                parts[found.share, found.unit].append((found.tokens, entry.bits_per_byte))
        if len(parts) < 2:
            return []
        means = [tuple(map(statistics.fmean, zip(*part, strict=True))) for part in parts.values()]
        return [*([(0.0, off.bits_per_byte)] if off else ()), *((x, y) for x, y in means)]

    return _by_cell(sweep, measure, "Size of the database", "Tokens in the database", fewest=3)


def overlap_by_cell(sweep: SweepRecord) -> Figure | None:
    """Draw the scores of chunks with r(C) up to each alpha (Figure 6), a line for each cell."""

    def measure(run: RunRecord) -> Sequence[Point]:
        entry = run.retro.evaluation(run.retro.k) if run.retro else None
        if run.retro is None or entry is None or entry.retrieved is None:
            return []
        chunks = run.chunk_scores(run.retro, entry)
        assert chunks.overlap is not None
        scores = ((alpha, chunks.bits_per_byte(chunks.overlap <= alpha)) for alpha in ALPHAS)
        return [(alpha, score) for alpha, score in scores if score is not None]

    return _by_cell(sweep, measure, "Overlap with what is retrieved", "Chunks with r(C) up to", fewest=2)


def _by_cell(sweep: SweepRecord, measure: Measure, title: str, x_title: str, *, fewest: int) -> Figure | None:
    """Draw a line of RETRO[On] for each cell; None for more cells than looks, or without a line of enough points."""
    found = [(_name(sweep, cell), measure(cell.run)) for cell in sweep.cells if cell.run and cell.run.retro]
    found = [(name, points) for name, points in found if len(points) >= fewest]
    if not found or len(found) > len(LOOKS):
        return None
    lines = [Line(name, tuple(sorted(points)), look) for (name, points), look in zip(found, LOOKS, strict=False)]
    return draw(f"{title}: {ON}", x_title, lines, swept=True)


def _name(sweep: SweepRecord, cell: Cell) -> str:
    """Return what is special about a cell, short enough for a label."""
    values = [cell.overrides.get(axis) or formats.NO_VALUE for axis in sweep.axes]
    name = ", ".join(values) or ON
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
