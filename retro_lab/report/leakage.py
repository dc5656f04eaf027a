"""Leakage: how much of a gain is left on text that the model cannot copy from its neighbors.

Scores of the chunks C with r(C) <= alpha, for growing alpha (Borgeaud et al. 2022, Sec. 2.6, Figures 6 and 7), where
r(C) is what a chunk has in common with what it retrieves (`retro_lab.retrieval.overlaps`). At alpha = 1 they are the
scores of the whole text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retro_lab.evaluation.intervals import gain_interval
from retro_lab.report import formats
from retro_lab.report.comparison import GAIN, GAIN_PERCENT, OFF, ON, Gain, Scored, comparable, distinct
from retro_lab.report.tables import Column, Table, Value
from retro_lab.retrieval.overlaps import COPIED
from retro_lab.runs.chunk_scores import ChunkScores
from retro_lab.runs.records import Evaluation, ModelRecord, RunRecord

UNEQUAL = 0.1
"""Shares of chunks with near-copies that differ by more than this are worth a warning."""
ALPHAS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""The last is every chunk."""
BINS = tuple(bin / 8 for bin in range(9))
"""Upper ends of the bins of the histogram; the first is of chunks that share nothing."""
OVERLAP_NOTE = (
    "r(C): the longest piece of a chunk's text that stands, token for token, in one of its nearest neighbors or its "
    "continuation, as a share of the chunk (Borgeaud et al. 2022, Sec. 2.6). Each row scores the chunks that have at "
    "most so much, in bits per byte; the last one has all of them. Share: of the text's bytes."
)
GAIN_NOTE = "Gain: below the baseline on the same chunks, with its 95% interval over documents."


@dataclass(frozen=True)
class Level:
    """Scores of the chunks with r(C) <= alpha, in bits per byte; None for what was not measured or has no chunks."""

    alpha: float
    share: float
    """Share of the text's bytes that these chunks have."""
    baseline: float | None
    off: float | None
    on: float | None
    gain: Gain | None
    """Of RETRO[On] over the baseline."""
    over_off: Gain | None
    """Of RETRO[On] over RETRO[Off]."""


@dataclass(frozen=True)
class Leakage:
    """The scores of RETRO[On] on one text, with neighbors of one database, by overlap."""

    label: str
    """Tells it from others of the same run."""
    levels: tuple[Level, ...]
    """One for each of `ALPHAS`."""
    copied: float
    """Share of the text's chunks with r(C) >= `COPIED`."""
    copied_in_training: float
    """The same of the training chunks, with the database that RETRO was trained with."""
    shares: tuple[float, ...]
    """Share of the text's chunks with an r(C) up to each of `BINS`, and above the one before it."""

    @property
    def has_gain(self) -> bool:
        """Whether there is a baseline to compare with."""
        return any(level.gain for level in self.levels)


def run_leakage(run: RunRecord) -> tuple[Leakage, ...]:
    """Measure the leakage of a run's RETRO on each text and with each whole database, as it was trained.

    Raises:
        ArtifactError: The chunks' scores cannot be read.
    """
    retro = run.retro
    if retro is None:
        return ()
    own = (entry for entry in retro.evaluations if entry.k == retro.k)
    entries = [entry for entry in own if entry.retrieved and entry.retrieved.is_whole]
    names = distinct({entry.text: entry.text.name for entry in entries})
    databases = distinct({entry.retrieved: entry.retrieved.database for entry in entries if entry.retrieved})
    several = len(databases) > 1
    found = []
    for entry in entries:
        label = f"{names[entry.text]}, {databases[entry.retrieved]}" if several else names[entry.text]
        others = [_compared(run, model, entry) for model in (run.baseline, retro)]
        on = Scored(run, retro, entry).chunks()
        assert on.overlap is not None
        copied = float((on.overlap >= COPIED).mean())
        in_training = retro.database.training_overlaps[str(COPIED)] if retro.database else 0.0
        counts = np.bincount(np.searchsorted(BINS, on.overlap), minlength=len(BINS))
        shares = tuple((counts / max(1, counts.sum())).tolist())
        found.append(Leakage(label, _levels(on, *others), copied, in_training, shares))
    return tuple(found)


def _compared(run: RunRecord, model: ModelRecord | None, on: Evaluation) -> ChunkScores | None:
    """Return a model's scores without retrieval on the text of `on`; None where they cannot be compared with it."""
    entry = model.evaluation(0, on.text) if model else None
    return run.chunk_scores(model, entry) if model and entry and comparable(on, entry) else None


def _levels(on: ChunkScores, baseline: ChunkScores | None, off: ChunkScores | None) -> tuple[Level, ...]:
    assert on.overlap is not None
    levels = []
    for alpha in ALPHAS:
        chosen = on.overlap <= alpha
        levels.append(
            Level(
                alpha=alpha,
                share=float(on.bytes[chosen].sum() / on.bytes.sum()),
                baseline=baseline.bits_per_byte(chosen) if baseline else None,
                off=off.bits_per_byte(chosen) if off else None,
                on=on.bits_per_byte(chosen),
                gain=_gain(on, baseline, chosen) if baseline else None,
                over_off=_gain(on, off, chosen) if off else None,
            )
        )
    return tuple(levels)


def _gain(on: ChunkScores, baseline: ChunkScores, chosen: np.ndarray) -> Gain | None:
    score, level = on.bits_per_byte(chosen), baseline.bits_per_byte(chosen)
    if score is None or not level:
        return None
    interval = gain_interval(on.by_document(chosen), baseline.by_document(chosen))
    return Gain(level - score, 100 * (level - score) / level, interval)


def leakage_table(found: Sequence[Leakage]) -> Table | None:
    """Return the table of leakage, with what it says in words below it; None if nothing was measured.

    Without a baseline it has neither the baseline's scores nor gains.
    """
    if not found:
        return None
    several, gains = len(found) > 1, any(leakage.has_gain for leakage in found)
    columns = (
        *([Column("text", "Text", numeric=False)] if several else ()),
        Column("alpha", "r(C) up to", "{:g}".format),
        Column("byte_share", "Share", formats.share),
        *([Column("baseline_bits_per_byte", "Base\u00adline", formats.score)] if gains else ()),
        Column("off_bits_per_byte", OFF, formats.score),
        Column("on_bits_per_byte", ON, formats.score),
        *([GAIN, GAIN_PERCENT] if gains else ()),
    )
    rows = []
    for leakage in found:
        for level in leakage.levels:
            row: list[Value] = [leakage.label] if several else []
            row += [level.alpha, level.share, *([level.baseline] if gains else ()), level.off, level.on]
            rows.append((*row, *(_gain_values(level.gain) if gains else ())))
    title = "Gain by overlap with what is retrieved" if gains else "Scores by overlap with what is retrieved"
    notes = (OVERLAP_NOTE, *([GAIN_NOTE] if gains else ()), *leakage_sentences(found), *copy_sentences(found))
    return Table(title, columns, tuple(rows), notes)


def _gain_values(gain: Gain | None) -> tuple[Value, ...]:
    if gain is None:
        return (None, None, None, None)
    return (gain.bits_per_byte, *(gain.interval or (None, None)), gain.percent)


def leakage_sentences(found: Sequence[Leakage]) -> list[str]:
    """Say from which overlap on there is a gain, with the text's name if there are several; nothing without a baseline.

    A gain is there where its interval lies above zero, and so does that over RETRO[Off]: what is better without
    neighbors too is not a gain of retrieval.
    """
    prefixes = [f"{leakage.label}: " if len(found) > 1 else "" for leakage in found]
    return [
        prefix + _sentence(leakage.levels) for prefix, leakage in zip(prefixes, found, strict=True) if leakage.has_gain
    ]


def copy_sentences(found: Sequence[Leakage]) -> list[str]:
    """Say how often a chunk is nearly a copy of what it retrieves, in training and in each text."""
    prefixes = [f"{leakage.label}: " if len(found) > 1 else "" for leakage in found]
    return [prefix + _copies(leakage) for prefix, leakage in zip(prefixes, found, strict=True)]


def _copies(leakage: Leakage) -> str:
    """Compare how often training and scoring see a near-copy of the chunk, and warn where they differ."""
    training, scoring = formats.share(leakage.copied_in_training), formats.share(leakage.copied)
    said = f"At least {COPIED:.0%} of a chunk stands in one piece of a neighbor for {training} of the training chunks "
    said += f"and {scoring} of the scored ones."
    difference = leakage.copied_in_training - leakage.copied
    if abs(difference) <= UNEQUAL:
        return said
    more, less = ("more", "too much") if difference > 0 else ("less", "too little")
    return f"{said} Training saw copies {more} often than scoring does, and may have taught RETRO to copy {less}."


def _sentence(levels: Sequence[Level]) -> str:
    whole = levels[-1]
    if whole.gain is None or whole.gain.interval is None:
        return "The scored text is a single document, so from which r(C) on there is a gain cannot be told."
    certain = [level for level in levels if _is_certain(level)]
    if not certain:
        reason = "no interval lies above zero"
        if whole.gain.interval.high < 0:
            reason = f"{ON} is worse than the baseline on the whole text"
            if whole.over_off is not None and whole.over_off.bits_per_byte >= 0:
                reason += f", but no worse than {OFF}: it pays for learning to use neighbors, and not for reading these"
        elif any(_is_above_zero(level.gain) for level in levels):
            reason = f"where {ON} is better than the baseline, {OFF} is too"
        return f"There is no gain of retrieval at any r(C): {reason}."
    first = certain[0]
    place = levels.index(first)
    if place == 0:
        sentence = f"The gain does not need copied text: it is above zero already at {_where(first)}."
    else:
        below = levels[place - 1]
        if first is not whole:
            start = f"The gain begins at {_where(first)}"
        elif below.gain is None or below.gain.bits_per_byte <= 0:
            start = "All of the gain comes from chunks that lie (nearly) whole in a neighbor"
        else:
            start = "A gain is certain only with the chunks that lie (nearly) whole in a neighbor"
        sentence = f"{start}: {_state(below)}."
    lost = next((level for level in levels[place:] if not _is_certain(level)), None)
    return f"{sentence} But {_state(lost)}." if lost else sentence


def _is_certain(level: Level) -> bool:
    return _is_above_zero(level.gain) and (level.off is None or _is_above_zero(level.over_off))


def _is_above_zero(gain: Gain | None) -> bool:
    return gain is not None and gain.interval is not None and gain.interval.low > 0


def _where(level: Level) -> str:
    return f"r(C) <= {level.alpha:g} ({formats.share(level.share)} of the text)"


def _state(level: Level) -> str:
    """Say what is known of a gain that is not certain."""
    if level.gain is None:
        return f"no chunk has r(C) <= {level.alpha:g}"
    if level.gain.interval is None:
        return f"at {_where(level)} there is a single document, which has no interval"
    if level.gain.interval.high < 0:
        return f"at {_where(level)} {ON} is worse than the baseline"
    if level.gain.interval.low > 0:
        return f"at {_where(level)} it is no gain of retrieval, as {OFF} has it too"
    return f"at {_where(level)} it is not distinguishable from zero"
