"""The figures of a report: learning curves, and bits per byte against k, database or the axis of a sweep."""

import statistics
from collections.abc import Iterable

from matplotlib.figure import Figure

from retro_lab.report.comparison import BASELINE, OFF, ON, Scored, cell_baseline, cell_scores, gain
from retro_lab.report.parts import grouped
from retro_lab.report.style import BASELINE_LOOK, OFF_LOOK, ON_LOOK, RANDOM_LOOKS, Line, Look, draw
from retro_lab.runs.records import Evaluation, ModelRecord, RunRecord
from retro_lab.runs.sweeps import Cell, SweepRecord, number

FEWEST_NEIGHBOR_COUNTS = 2
"""Number of values of k above zero that a RETRO needs scores for to be worth a figure."""


def curve_figure(run: RunRecord) -> Figure | None:
    """Draw held-out bits per byte against training tokens; None if no curve was recorded."""
    lines = []
    if run.baseline:
        lines.append(_curve(BASELINE, run.baseline, 0, BASELINE_LOOK))
    if run.retro:
        lines.append(_curve(OFF, run.retro, 0, OFF_LOOK))
        lines.append(_curve(f"{ON}, k={run.retro.k}", run.retro, run.retro.k, ON_LOOK))
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    return draw("Held-out text while training", "Training tokens", lines, swept=False)


def neighbors_figure(run: RunRecord) -> Figure | None:
    """Draw bits per byte of one RETRO against the k of its evaluation; None for fewer than two values of k."""
    if run.retro is None:
        return None
    text = run.retro.main_text
    entries = [entry for entry in _with_first_database(run.retro) if entry.text == text]
    on = [(entry.k, entry.bits_per_byte) for entry in entries]
    if len(on) < FEWEST_NEIGHBOR_COUNTS:
        return None
    xs = [0, *sorted(k for k, _ in on)]
    reference = Scored.of(run, run.baseline)
    bars = [_bar(entry.k, Scored(run, run.retro, entry), reference) for entry in entries]
    lines = [Line(ON, tuple(sorted(on)), ON_LOOK, bars=tuple(bar for bar in bars if bar))]
    for label, model, look in ((OFF, run.retro, OFF_LOOK), (BASELINE, run.baseline, BASELINE_LOOK)):
        level = model.evaluation(0) if model else None
        if level:
            # Neither retrieves anything, so one measurement at k = 0 is the level for every k.
            lines.append(Line(label, tuple((x, level.bits_per_byte) for x in xs), look, measured=(0,)))
    title = f"One RETRO, trained with k={run.retro.k}, evaluated with others"
    return draw(title, "Neighbors retrieved for each chunk", lines, swept=True)


def database_figure(run: RunRecord) -> Figure | None:
    """Draw bits per byte of one RETRO against the tokens of its database; None without parts of it.

    Its first documents are points; random parts of a share are the mean over their seeds, with a band over them.
    """
    retro = run.retro
    whole = retro.evaluation(retro.k) if retro else None
    if retro is None or whole is None or whole.retrieved is None:
        return None
    alike = (entry for entry in retro.evaluations if (entry.text, entry.k) == (whole.text, whole.k))
    entries = [entry for entry in alike if _tokens(entry) and entry.retrieved and entry.retrieved.filter is None]
    parts = [entry for entry in entries if entry.retrieved and not entry.retrieved.is_whole]
    if not parts:
        return None
    ends = [whole] if _tokens(whole) else []
    first = sorted([entry for entry in parts if _seed(entry) is None] + ends, key=_tokens)
    reference = Scored.of(run, run.baseline)
    bars = [_bar(_tokens(entry), Scored(run, retro, entry), reference) for entry in first]
    points = tuple((_tokens(entry), entry.bits_per_byte) for entry in first)
    lines = [Line(ON, points, ON_LOOK, bars=tuple(bar for bar in bars if bar))]
    for unit, look in RANDOM_LOOKS.items():
        drawn = [entry for entry in parts if entry.retrieved and entry.retrieved.unit == unit]
        groups = [*grouped(drawn), *([(end,) for end in ends])] if drawn else []
        means, band = [], []
        for group in sorted(groups, key=lambda group: _mean(map(_tokens, group))):
            levels = [entry.bits_per_byte for entry in group]
            means.append((_mean(map(_tokens, group)), _mean(levels)))
            band.append((means[-1][0], min(levels), max(levels)))
        lines.append(Line(f"Random {unit}s", tuple(means), look, band=tuple(band)))
    xs = sorted({x for line in lines for x, _ in line.points})
    for label, model, look in ((OFF, retro, OFF_LOOK), (BASELINE, run.baseline, BASELINE_LOOK)):
        if level := model.evaluation(0) if model else None:
            lines.append(Line(label, tuple((x, level.bits_per_byte) for x in xs), look, measured=()))
    title = f"One RETRO, k={retro.k}, evaluated with parts of its database"
    return draw(title, "Tokens in the database", [line for line in lines if line.points], swept=True)


def _tokens(entry: Evaluation) -> int:
    """Return the tokens of a score's database; 0 where an earlier release did not tell."""
    return (entry.retrieved.tokens if entry.retrieved else None) or 0


def _seed(entry: Evaluation) -> int | None:
    return entry.retrieved.seed if entry.retrieved else None


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def sweep_figure(sweep: SweepRecord) -> Figure | None:
    """Draw bits per byte against the only axis of a sweep; None if it has several, or its values are not numbers.

    An axis `size` is drawn as the non-embedding parameters of each model.
    """
    if len(sweep.axes) != 1:
        return None
    (axis,) = sweep.axes
    off, on, reference, own, bars = [], [], [], [], []
    for cell in sweep.cells:
        retro, origin = (cell.run.retro, cell_baseline(sweep, cell)) if cell.run else (None, None)
        baseline = origin.baseline if origin else None
        if baseline and (x := _position(axis, cell, baseline)) is not None and (entry := baseline.evaluation(0)):
            own += [x] if cell.run and cell.run.baseline else []
            reference.append((x, entry.bits_per_byte))
        if retro and (x := _position(axis, cell, retro)) is not None:
            off += [(x, entry.bits_per_byte) for entry in [retro.evaluation(0)] if entry]
            on += [(x, entry.bits_per_byte) for entry in [retro.evaluation(retro.k)] if entry]
            level, _, scored = cell_scores(sweep, cell)
            bars += [bar for bar in [_bar(x, scored, level)] if bar]
    lines = [
        Line(BASELINE, tuple(reference), BASELINE_LOOK, measured=tuple(own)),
        Line(OFF, tuple(off), OFF_LOOK),
        Line(ON, tuple(on), ON_LOOK, bars=tuple(bars)),
    ]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    x_title = "Non-embedding parameters" if axis == "size" else axis
    return draw(f"Held-out text against {axis}", x_title, lines, swept=True)


def _bar(x: float, scored: Scored | None, baseline: Scored | None) -> tuple[float, float, float] | None:
    """Return the interval of a score's distance from the baseline, below the baseline's level; None if it has none."""
    difference = gain(scored, baseline)
    if difference is None or difference.interval is None or baseline is None:
        return None
    level = baseline.entry.bits_per_byte
    return x, level - difference.interval.high, level - difference.interval.low


def _with_first_database(retro: ModelRecord) -> list[Evaluation]:
    """Return the scores with neighbors from the first whole database."""
    retrieving = [entry for entry in retro.evaluations if entry.retrieved is not None and entry.retrieved.is_whole]
    return [entry for entry in retrieving if entry.retrieved == retrieving[0].retrieved]


def _curve(label: str, model: ModelRecord, k: int, look: Look) -> Line:
    points = sorted((point.tokens, point.bits_per_byte) for point in model.curve if point.k == k)
    return Line(label, tuple(points), look)


def _position(axis: str, cell: Cell, model: ModelRecord) -> float | None:
    return model.parameters.non_embedding if axis == "size" else number(cell.overrides.get(axis))
