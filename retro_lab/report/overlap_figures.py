"""The figures of leakage: gains, scores and numbers of chunks by r(C) (Borgeaud et al. 2022, Figures 6 and 10)."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from retro_lab.report import formats
from retro_lab.report.comparison import BASELINE, OFF, ON
from retro_lab.report.leakage import BINS, Leakage, Level
from retro_lab.report.style import BASELINE_LOOK, LOOKS, OFF_LOOK, ON_LOOK, Line, Look, draw

X_TITLE = "Chunks with r(C) up to"


def leakage_figure(found: Sequence[Leakage]) -> Figure | None:
    """Draw the gain on the first text against the largest overlap of its chunks; None if there is no gain to state."""
    levels = [level for level in found[0].levels if level.gain] if found else []
    points = tuple((level.alpha, level.gain.bits_per_byte) for level in levels if level.gain)
    intervals = [(level.alpha, level.gain.interval) for level in levels if level.gain and level.gain.interval]
    if not points:
        return None
    line = Line(ON, points, ON_LOOK, bars=tuple((alpha, *interval) for alpha, interval in intervals))
    return draw(
        "Gain by overlap with what is retrieved",
        "Chunks with r(C) up to",
        [line],
        swept=True,
        y_title="Gain in bits per byte (higher is better)",
        show=formats.signed_score,
        zero=True,
    )


def overlap_figure(found: Leakage) -> Figure:
    """Draw the bits per byte of one text against the largest overlap of its chunks (Figure 6)."""
    lines = [
        _line(label, look, [(level.alpha, _score(level, label)) for level in found.levels])
        for label, look in ((BASELINE, BASELINE_LOOK), (OFF, OFF_LOOK), (ON, ON_LOOK))
    ]
    lines = [line for line in lines if line.points]
    return draw(f"{found.label}: scores by overlap", X_TITLE, lines, swept=True)


def histogram_figure(found: Sequence[Leakage]) -> Figure:
    """Draw the share of each text's chunks by their overlap with what is retrieved (Figure 10)."""
    lines = [
        Line(leakage.label, tuple(zip(BINS, leakage.shares, strict=True)), look)
        for leakage, look in zip(found, LOOKS, strict=False)
    ]
    return draw(
        "Chunks by overlap with what is retrieved",
        "r(C), up to",
        lines,
        swept=True,
        y_title="Share of the text's chunks",
        show=formats.share,
    )


def _score(level: Level, label: str) -> float | None:
    return {BASELINE: level.baseline, OFF: level.off, ON: level.on}[label]


def _line(label: str, look: Look, points: Sequence[tuple[float, float | None]]) -> Line:
    return Line(label, tuple((x, y) for x, y in points if y is not None), look)
