"""The look of every figure. Colors are Okabe and Ito's, which color-blind readers can tell apart, as are the dashes."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from retro_lab.report import formats

Format = Literal["png", "svg"]
Point = tuple[float, float]

SETTINGS: Any = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "grid.color": "#e4e4e4",
    "lines.linewidth": 2,
    "lines.markersize": 5,
    # Do not parse dollar signs in configuration keys and values as math.
    "text.parse_math": False,
    "svg.hashsalt": "retro_lab",
}
# Dates and versions would make two reports on the same results differ.
METADATA: Mapping[Format, Mapping[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
Y_TITLE = "Bits per byte (lower is better)"
SIZE_INCHES = (8.0, 4.4)
PIXELS_PER_INCH = 160
LABEL_GAP_POINTS = 17.0
BAR_POINTS = 4.0
"""Width of a bar that stands for an interval."""
WIDE_RANGE = 30
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
HEAD_INCHES, ROW_INCHES = 1.6, 0.3
"""Height of what is above and below the rows of a figure together, and of a row."""
CHARACTER_SHARE, GAP_SHARE = 0.021, 0.01
"""Width of a character of a tick's label, and least gap between two labels, as shares of the axis."""
MANY_TICKS = 10
"""Largest number of measured values that get a tick each."""


@dataclass(frozen=True)
class Look:
    """Color, dashes and marker of one kind of model."""

    color: str
    dashes: str
    marker: str


@dataclass(frozen=True)
class Line:
    """One line of a figure; only points whose x is in `measured` get a marker, or all points if it is None."""

    label: str
    points: tuple[Point, ...]
    look: Look
    measured: tuple[float, ...] | None = None
    bars: tuple[tuple[float, float, float], ...] = ()
    """Intervals as x, low and high, drawn as vertical bars."""
    band: tuple[tuple[float, float, float], ...] = ()
    """A range around the line as x, low and high, drawn as an area."""


@dataclass(frozen=True)
class Mark:
    """A value in a row of a figure."""

    label: str
    value: float
    look: Look


BASELINE_LOOK = Look("#4d4d4d", ":", "s")
OFF_LOOK = Look("#d55e00", "--", "o")
ON_LOOK = Look("#0072b2", "-", "D")
LOOKS = (
    Look("#0072b2", "-", "D"),
    Look("#d55e00", "--", "o"),
    Look("#009e73", "-.", "^"),
    Look("#cc79a7", ":", "s"),
    Look("#e69f00", "-", "v"),
    Look("#56b4e9", "--", "P"),
    Look("#000000", "-.", "X"),
)
"""Looks of lines of the same kind, such as one for each text; no figure has more of them."""
RANDOM_LOOKS = {"chunk": Look("#009e73", "-.", "^"), "document": Look("#cc79a7", "-.", "v")}
"""Of random parts of a database, by what they keep or leave out."""


def draw(
    title: str,
    x_title: str,
    lines: Sequence[Line],
    *,
    swept: bool,
    y_title: str = Y_TITLE,
    show: Callable[[float], str] = formats.score,
    zero: bool = False,
) -> Figure:
    """Draw lines labeled with their names and last values at their right ends.

    Points that are not finite, such as those of a diverged model, are left out.

    Args:
        title: Title of the figure.
        x_title: What the x axis shows.
        lines: The lines.
        swept: The x values are few and chosen by hand: tick each, and use a logarithmic axis for a wide range.
        y_title: What the y axis shows.
        show: Turns the last value of a line into text.
        zero: Draw a line at y = 0.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        figure = Figure(figsize=SIZE_INCHES)
        # Leave room for tick labels with three decimals on the left, and for the names of the lines on the right.
        axes = figure.add_axes((0.11, 0.14, 0.58, 0.76))
        for line in lines:
            _draw_line(axes, line)
        if zero:
            axes.axhline(0, color=BASELINE_LOOK.color, linewidth=1)
        axes.set(title=title, xlabel=x_title, ylabel=y_title)
        axes.margins(x=0.02, y=0.08)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.count(value)))
        if swept:
            _fit_scale(axes, sorted({x for line in lines for x, _ in line.points}))
        _label_ends(figure, axes, [line for line in lines if _finite(line)], show)
    return figure


def draw_rows(title: str, rows: Sequence[tuple[str, Sequence[Mark]]], *, x_title: str = Y_TITLE) -> Figure:
    """Draw named rows of marks, the first at the top, with a legend of what the marks are.

    Args:
        title: Title of the figure.
        rows: Names and marks; a row without marks was not measured.
        x_title: What the x axis shows.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        figure = Figure(figsize=(SIZE_INCHES[0], HEAD_INCHES + ROW_INCHES * len(rows)))
        below = HEAD_INCHES / 2 / figure.get_figheight()
        axes = figure.add_axes((0.32, below, 0.64, 1 - 2 * below))
        marks = [(mark, -row) for row, (_, marks) in enumerate(rows) for mark in marks if math.isfinite(mark.value)]
        for label, look in dict.fromkeys((mark.label, mark.look) for mark, _ in marks):
            own = [(mark.value, height) for mark, height in marks if mark.label == label]
            axes.plot(*zip(*own, strict=True), color=look.color, marker=look.marker, linestyle="none", label=label)
        axes.set(title=title, xlabel=x_title, ylim=(0.5 - len(rows), 0.5))
        axes.set_yticks([-row for row in range(len(rows))], [name for name, _ in rows])
        figure.legend(loc="lower left", ncols=1, frameon=False, bbox_to_anchor=(0.0, 0.0), fontsize=9)
    return figure


def save(figure: Figure, kind: Format) -> bytes:
    """Return the figure as a file's bytes, which are the same each time."""
    buffer = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        figure.savefig(buffer, format=kind, dpi=PIXELS_PER_INCH, metadata=dict(METADATA[kind]))
    return buffer.getvalue()


def _finite(line: Line) -> list[Point]:
    return [point for point in line.points if math.isfinite(point[1])]


def _draw_line(axes: Axes, line: Line) -> None:
    points = _finite(line)
    marked = [i for i, (x, _) in enumerate(points) if line.measured is None or x in line.measured]
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        label=line.label,
        color=line.look.color,
        linestyle=line.look.dashes,
        marker=line.look.marker,
        markevery=marked,
    )
    if line.bars:
        xs, lows, highs = zip(*line.bars, strict=True)
        axes.vlines(xs, lows, highs, colors=line.look.color, linewidth=BAR_POINTS, alpha=0.35)
    if line.band:
        xs, lows, highs = zip(*line.band, strict=True)
        axes.fill_between(xs, lows, highs, color=line.look.color, alpha=0.2, linewidth=0)


def _fit_scale(axes: Axes, values: Sequence[float]) -> None:
    """Choose the scale and the ticks of the x axis for the measured values, which are sorted."""
    formatter = axes.xaxis.get_major_formatter()
    positive = [value for value in values if value > 0]
    if values[0] >= 0 and positive and positive[-1] / positive[0] >= WIDE_RANGE:
        if values[0] == 0:
            axes.set_xscale("symlog", linthresh=positive[0])
        else:
            axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(formatter)
    if len(values) <= MANY_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(_apart(axes, values)))


def _apart(axes: Axes, values: Sequence[float]) -> list[float]:
    """Leave out values whose labels would cover that of a larger one that is kept."""
    places = dict(zip(values, axes.xaxis.get_transform().transform(values), strict=True))
    width = max(places.values()) - min(places.values())
    kept = [values[-1]]
    for value in reversed(values[:-1]):
        characters = (len(formats.count(value)) + len(formats.count(kept[-1]))) / 2
        if places[kept[-1]] - places[value] > width * (characters * CHARACTER_SHARE + GAP_SHARE):
            kept.append(value)
    return kept[::-1]


def _label_ends(figure: Figure, axes: Axes, lines: Sequence[Line], show: Callable[[float], str]) -> None:
    """Write each line's name and last value to the right of the axes, at its height but never overlapping another."""
    axes.autoscale_view()
    points_per_pixel = 72 / figure.dpi
    ends = [(_finite(line)[-1][1], line) for line in lines]
    heights = [axes.transData.transform((0, value))[1] * points_per_pixel for value, _ in ends]
    for (value, line), height, target in zip(ends, heights, _spread(heights, LABEL_GAP_POINTS), strict=True):
        axes.annotate(
            f"{line.label}  {show(value)}",
            xy=(1, value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(10, target - height),
            textcoords="offset points",
            color=line.look.color,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights until neighbors are `gap` apart, keeping the center of the group."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [0.0] * len(heights)
    for below, i in zip([None, *order], order, strict=False):
        placed[i] = heights[i] if below is None else max(heights[i], placed[below] + gap)
    shift = sum(heights) / len(heights) - sum(placed) / len(placed) if heights else 0.0
    return [height + shift for height in placed]
