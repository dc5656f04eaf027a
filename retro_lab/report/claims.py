"""Claims: what the paper says of an experiment, held against the scores of a sweep.

A claim is one or more comparisons of scores on the same text. It holds if the 95% interval of each lies above zero, and
does not hold if that of one lies below; otherwise the scores do not decide it. Intervals are over documents, and over
seeds too where a sweep has several (`retro_lab.evaluation.intervals`).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from retro_lab.evaluation.intervals import Interval, weighted_interval
from retro_lab.report import formats
from retro_lab.report.comparison import Scored
from retro_lab.report.seeds import SEED
from retro_lab.report.tables import Column, Table, Value
from retro_lab.runs.chunk_scores import DocumentScores
from retro_lab.runs.sweeps import SweepRecord


class Verdict(StrEnum):
    """What scores say of a claim."""

    holds = "holds"
    does_not_hold = "does not hold"
    undecided = "not decidable here"
    not_measured = "not measured"


@dataclass(frozen=True)
class Term:
    """A score, and its weight in a comparison."""

    weight: float
    scored: Scored
    alpha: float | None = None
    """Largest r(C) of the chunks to count (`retro_lab.report.leakage`); None counts all."""
    overlaps: Scored | None = None
    """The score whose chunks say what r(C) is."""

    def documents(self) -> DocumentScores:
        """Return the score of each document.

        Raises:
            ArtifactError: The chunks' scores cannot be read.
        """
        chunks = self.scored.chunks()
        if self.alpha is None or self.overlaps is None:
            return chunks.by_document()
        overlap = self.overlaps.chunks().overlap
        assert overlap is not None
        return chunks.by_document(overlap <= self.alpha)


@dataclass(frozen=True)
class Comparison:
    """A weighted sum of bits per byte that a claim takes to be above zero."""

    where: str
    """Tells it from others of the claim, such as `size=172m`."""
    terms: tuple[Term, ...]
    """Empty if a score is missing."""
    margin: float = 0.0
    """Bits per byte by which the sum may be below zero."""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, or of a later one, and how to compare scores for it."""

    says: str
    source: str
    comparisons: Callable[[SweepRecord], Iterable[Comparison]]


@dataclass(frozen=True)
class Finding:
    """What the scores of a sweep say of a claim."""

    claim: Claim
    verdict: Verdict
    measured: int
    """Comparisons that have all their scores."""
    planned: int
    where: str = ""
    """The comparison that decides: the one that is lowest, relative to what it may be."""
    difference: float | None = None
    """Bits per byte of that comparison, in the mean over seeds."""
    interval: Interval | None = None


def find(claims: Iterable[Claim], sweep: SweepRecord) -> tuple[Finding, ...]:
    """Hold claims against the scores of a sweep; those that it has nothing to compare for are left out.

    Raises:
        ArtifactError: The chunks' scores cannot be read.
    """
    found = (_find(claim, sweep) for claim in claims)
    return tuple(finding for finding in found if finding.planned)


def claims_table(found: Sequence[Finding]) -> Table | None:
    """Return the table of claims; None without any."""
    if not found:
        return None
    columns = (
        Column("claim", "Claim", numeric=False),
        Column("source", "Source", numeric=False, terminal=False),
        Column("verdict", "Here", numeric=False, colors=VERDICT_COLORS),
        Column("comparisons", "Measured", numeric=False, terminal=False),
        Column("decided_by", "Decided by", numeric=False, terminal=False),
        Column("difference", "Bits per byte", formats.with_interval, more=("difference_low", "difference_high")),
    )
    rows: list[tuple[Value, ...]] = [
        (
            finding.claim.says,
            finding.claim.source,
            finding.verdict.value,
            f"{finding.measured} of {finding.planned}",
            finding.where or None,
            finding.difference,
            *(finding.interval or (None, None)),
        )
        for finding in found
    ]
    return Table("Claims", columns, tuple(rows), (CLAIMS_NOTE,))


VERDICT_COLORS = {
    Verdict.holds.value: "green",
    Verdict.does_not_hold.value: "bold red",
    Verdict.undecided.value: "yellow",
    Verdict.not_measured.value: "yellow",
}
CLAIMS_NOTE = (
    "A claim holds if the 95% interval of each of its comparisons lies above zero (or above what it allows for), and "
    "does not hold if that of one lies below. Bits per byte: the comparison that decides, above zero where the claim "
    "is right, with its interval over documents, and over seeds where there are several."
)


def _find(claim: Claim, sweep: SweepRecord) -> Finding:
    rows = defaultdict[str, list[Comparison]](list)
    for part in _by_seed(sweep):
        for comparison in claim.comparisons(part):
            rows[comparison.where].append(comparison)
    measured = ([one for one in row if one.terms] for row in rows.values())
    decided = [one for seeds in measured if seeds and (one := _decide(seeds))]
    finding = Finding(claim, Verdict.not_measured, len(decided), len(rows))
    if not decided:
        return finding
    verdicts = {one.verdict for one in decided}
    verdict = next(
        (one for one in (Verdict.does_not_hold, Verdict.undecided) if one in verdicts),
        Verdict.holds if len(decided) == len(rows) else Verdict.not_measured,
    )
    candidates = [one for one in decided if one.verdict is verdict] or decided
    decisive = min(candidates, key=lambda one: one.lowest)
    return replace(
        finding,
        verdict=verdict,
        where=decisive.where,
        difference=decisive.difference,
        interval=decisive.interval,
    )


def _by_seed(sweep: SweepRecord) -> list[SweepRecord]:
    """Return the sweep of each seed."""
    if SEED not in sweep.axes:
        return [sweep]
    axes = tuple(axis for axis in sweep.axes if axis != SEED)
    seeds = dict.fromkeys(cell.overrides.get(SEED) for cell in sweep.cells)
    cells = [tuple(cell for cell in sweep.cells if cell.overrides.get(SEED) == seed) for seed in seeds]
    return [replace(sweep, axes=axes, cells=found) for found in cells]


@dataclass(frozen=True)
class _Decided:
    """A comparison with its outcome, in the mean over seeds."""

    where: str
    difference: float
    interval: Interval | None
    margin: float

    @property
    def lowest(self) -> float:
        """Lower end of the interval, above what is allowed for."""
        return (self.interval.low if self.interval else self.difference) + self.margin

    @property
    def verdict(self) -> Verdict:
        if self.interval is None or self.interval.low <= -self.margin <= self.interval.high:
            return Verdict.undecided
        return Verdict.holds if self.interval.low > -self.margin else Verdict.does_not_hold


def _decide(seeds: Sequence[Comparison]) -> _Decided | None:
    """Compare; None if the text has no chunks of this overlap."""
    scores = [[(term.weight, term.documents()) for term in one.terms] for one in seeds]
    if not scores[0][0][1].bytes.sum():
        return None
    totals = [sum(weight * _bits_per_byte(documents) for weight, documents in pairs) for pairs in scores]
    return _Decided(seeds[0].where, sum(totals) / len(totals), weighted_interval(scores), seeds[0].margin)


def _bits_per_byte(documents: DocumentScores) -> float:
    return float(documents.nats.sum() / documents.bytes.sum() / math.log(2))
