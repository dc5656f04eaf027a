"""Comparisons of scores, and the table of a run: RETRO against its baseline."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retro_lab.evaluation.intervals import DRAWS, Interval, gain_interval, share_interval
from retro_lab.report import formats
from retro_lab.report.parts import grouped, mean, part_name, part_notes
from retro_lab.report.tables import Column, Table, Value
from retro_lab.runs.chunk_scores import ChunkScores, DocumentScores
from retro_lab.runs.records import Evaluation, KnnLm, ModelRecord, RunRecord, ScoredText
from retro_lab.runs.sweeps import Cell, SweepRecord

BASELINE, LONGER, OFF, ON = "Baseline", "Baseline, same FLOPs", "RETRO[Off]", "RETRO[On]"
KNN_LM = "kNN-LM"

GAIN_NOTE = (
    "Gain: bits per byte below the baseline, and as a share of the baseline's. Above zero is better. In brackets: its "
    f"95% interval over the documents of the text, from {DRAWS:,} bootstrap draws."
)
FLOPS_NOTE = "x FLOPs: forward pass for a token of the text, over the baseline's."
RUN_NOTE = (
    "Tokens: seen in training, including padding. k: neighbors that each chunk retrieves during scoring. Perplexity is "
    "per token."
)
WORD_NOTE = (
    "Perplexity per word: of pieces of the text between spaces and line ends, the same for any tokenizer; in WikiText "
    "the end of each line is a word as well."
)
ACCURACY_NOTE = (
    "Accuracy: share of the documents of which every scored token is the most probable one, given the true ones before "
    "it; in brackets, its 95% interval over documents."
)
KNN_NOTE = (
    "kNN-LM: the baseline's probabilities, mixed with those of the k tokens with the nearest hidden states (Khandelwal "
    "et al. 2020); k counts those."
)
COMPUTE_NOTE = "FLOPs: of the model alone, in training and for each byte that it scores; not those of the database."

PARAMETERS = Column("parameters", "Para\u00admeters", formats.count)
NON_EMBEDDING = Column("non_embedding_parameters", "Without embed\u00addings", formats.count, terminal=False)
TOKENS = Column("training_tokens", "Tokens", formats.count)
GAIN = Column("gain_bits_per_byte", "Gain", formats.with_interval, more=("gain_low", "gain_high"))
GAIN_PERCENT = Column("gain_percent", "Gain %", formats.signed_percent)
SECOND_GAIN = Column(
    "gain_same_flops",
    "Gain, same FLOPs",
    formats.with_interval,
    more=("gain_same_flops_low", "gain_same_flops_high"),
    terminal=False,
)
FLOPS = Column("flops_ratio", "x FLOPs", formats.ratio)
BITS_PER_BYTE = Column(
    "bits_per_byte", "Bits per byte", formats.with_range, more=("bits_per_byte_lowest", "bits_per_byte_highest")
)
WORD_PERPLEXITY = Column("word_perplexity", "Perplexity per word", formats.perplexity, terminal=False)
ACCURACY = Column("accuracy", "Accu\u00adracy", formats.share_with_interval, more=("accuracy_low", "accuracy_high"))
TRAINING_FLOPS = Column("training_flops", "Training FLOPs", formats.flops)
FLOPS_PER_BYTE = Column("flops_per_byte", "FLOPs per byte", formats.flops)


@dataclass(frozen=True)
class Scored:
    """A score, and the model of a run that it is of."""

    run: RunRecord
    model: ModelRecord
    entry: Evaluation
    seeds: tuple[Evaluation, ...] = ()
    """Scores with random parts of a database, of which `entry` is the mean; none for a score of its own."""

    @classmethod
    def of(
        cls, run: RunRecord | None, model: ModelRecord | None, k: int = 0, text: ScoredText | None = None
    ) -> "Scored | None":
        """Return a model's score on a text, by default its main one, with k neighbors; None where it has none."""
        entry = model.evaluation(k, text) if model else None
        return cls(run, model, entry) if run and model and entry else None

    def chunks(self) -> ChunkScores:
        """Read each chunk's share in the score.

        Raises:
            ArtifactError: Their file is damaged.
        """
        return self.run.chunk_scores(self.model, self.entry)

    def by_document(self) -> DocumentScores:
        """Add up each document's share in the score; of a mean, the mean share.

        Raises:
            ArtifactError: A file of chunks' scores is damaged.
        """
        found = [self.run.chunk_scores(self.model, entry).by_document() for entry in self.seeds or (self.entry,)]
        return replace(found[0], nats=np.mean([scores.nats for scores in found], axis=0))

    @property
    def spread(self) -> tuple[float | None, float | None]:
        """The lowest and the highest bits per byte of several seeds; None for a score of its own."""
        levels = [entry.bits_per_byte for entry in self.seeds]
        return (min(levels), max(levels)) if len(levels) > 1 else (None, None)


@dataclass(frozen=True)
class Gain:
    """How far a score is below the baseline's, in bits per byte and in percent of the baseline's."""

    bits_per_byte: float
    percent: float
    interval: Interval | None
    """95%, of the bits per byte; None if the text is a single document."""


@dataclass(frozen=True)
class Shown:
    """Which columns a table has besides those of every run: those that any of its scores has a value for."""

    words: bool
    accuracy: bool


def gain(scored: Scored | None, baseline: Scored | None) -> Gain | None:
    """Compare two scores; None where one is missing or they were not measured on the same text in the same way.

    Raises:
        ArtifactError: The chunks' scores cannot be read.
    """
    if scored is None or baseline is None or not comparable(scored.entry, baseline.entry):
        return None
    level = baseline.entry.bits_per_byte
    saved = level - scored.entry.bits_per_byte
    shares = [each.by_document() for each in (scored, baseline)]
    return Gain(saved, 100 * saved / level, gain_interval(*shares))


def comparable(evaluation: Evaluation, baseline: Evaluation) -> bool:
    """Tell whether two scores were measured on the same text in the same way."""
    texts = ((entry.bytes, entry.documents, entry.text) for entry in (evaluation, baseline))
    return next(texts) == next(texts) and baseline.bits_per_byte > 0


def flops_ratio(evaluation: Evaluation | None, baseline: Evaluation | None) -> float | None:
    """Return how many times the baseline's FLOPs a model takes for a token; None where scores cannot be compared."""
    if evaluation is None or baseline is None or not comparable(evaluation, baseline):
        return None
    return evaluation.flops_per_byte / baseline.flops_per_byte


def run_table(run: RunRecord) -> Table:
    """Compare the baseline, RETRO[Off] and RETRO[On] of one run on each text that they were scored on.

    RETRO[On] has a row for each database, each k, each part of a database and each filter that it was scored with;
    random parts that differ in their seeds alone share one. The notes describe the texts, windows and databases.
    """
    texts = tuple(dict.fromkeys(text for model in run.models for text in model.texts))
    names = distinct({text: text.name for text in texts})
    retrieved = [entry.retrieved for model in run.models for entry in model.evaluations if entry.retrieved]
    databases = {(found.database, found.source): found.database for found in retrieved if found.is_whole}
    labels = distinct(databases)
    several = len(texts) > 1
    # Names of texts, databases and parts have the room in the terminal.
    long_names = len(labels) > 1 or not all(found.is_whole for found in retrieved)
    entries = [entry for model in run.models for entry in model.evaluations]
    shown = Shown(any(entry.words for entry in entries), any(entry.accuracy is not None for entry in entries))
    rows = []
    for text in texts or (None,):
        rows += [(*([names[text]] if several and text else ()), *row) for row in _text_rows(run, text, labels, shown)]
    columns = (
        *([Column("text", "Text", numeric=False)] if several else ()),
        Column("model", "Model", numeric=False),
        replace(PARAMETERS, terminal=not (several or long_names)),
        NON_EMBEDDING,
        replace(TOKENS, terminal=not long_names),
        replace(TRAINING_FLOPS, terminal=not long_names),
        Column("k", "k", terminal=False),
        FLOPS_PER_BYTE,
        BITS_PER_BYTE,
        Column("perplexity", "Per\u00adplexity", formats.perplexity, terminal=False),
        *([WORD_PERPLEXITY] if shown.words else ()),
        *([ACCURACY] if shown.accuracy else ()),
        GAIN,
        GAIN_PERCENT,
        *([SECOND_GAIN] if run.longer_baseline else ()),
    )
    explained = [
        f"{names[text]}: {text.description}, in windows of {text.sequence_length:,} tokens every {text.stride:,}."
        for text in texts
    ]
    if databases:
        explained.append(f"Database: {'; '.join(dict.fromkeys(labels.values()))}.")
    mixtures = _mixtures(run)
    explained += [
        f"{label}: lambda = {mixture.interpolation:.3g} and alpha = {mixture.alpha:.3g}"
        f"{', tuned on the validation split' if mixture.tuned_on else ''}; {mixture.datastore}."
        for mixture, label in mixtures.items()
    ]
    notes = (
        *(GAIN_NOTE, RUN_NOTE),
        *([WORD_NOTE] if shown.words else ()),
        *([ACCURACY_NOTE] if shown.accuracy else ()),
        *([KNN_NOTE] if mixtures else ()),
        *(COMPUTE_NOTE, *explained, *part_notes(retrieved)),
    )
    return Table(run.name, columns, tuple(rows), notes)


def _text_rows(
    run: RunRecord, text: ScoredText | None, labels: Mapping[tuple[str, str], str], shown: Shown
) -> list[tuple[Value, ...]]:
    """Return the rows of one text: retrieval off, as trained, and with other k; missing scores become dashes."""
    rows = []
    reference, longer = (Scored.of(run, model, 0, text) for model in (run.baseline, run.longer_baseline))
    references = (reference, longer) if run.longer_baseline else (reference,)
    if run.baseline:
        entry = reference.entry if reference else None
        rows.append(_run_row(BASELINE, run, run.baseline, 0, entry, references, shown))
        mixtures = _mixtures(run)
        for mixed in run.baseline.evaluations:
            if mixed.knn and mixed.text == text:
                label = mixtures[replace(mixed.knn, neighbors="")]
                rows.append(_run_row(label, run, run.baseline, mixed.knn.k, mixed, references, shown))
    if run.longer_baseline:
        entry = longer.entry if longer else None
        rows.append(_run_row(LONGER, run, run.longer_baseline, 0, entry, references, shown))
    if run.retro:
        scored = [entry for entry in run.retro.evaluations if entry.text == text]
        others = sorted({entry.k for entry in scored} - {0, run.retro.k})
        for k in (0, run.retro.k, *others):
            name = OFF if k == 0 else ON if k == run.retro.k else f"{ON}, k={k}"
            measured: list[Evaluation | None] = [entry for entry in scored if entry.k == k and _is_whole(entry)]
            for entry in measured or [None]:
                found = entry.retrieved if entry else None
                where = f", {labels[found.database, found.source]}" if found and len(labels) > 1 else ""
                rows.append(_run_row(name + where, run, run.retro, k, entry, references, shown))
        for group in grouped(entry for entry in scored if not _is_whole(entry)):
            name = f"{ON}, {part_name(group)}"
            rows.append(_run_row(name, run, run.retro, group[0].k, mean(group), references, shown, group))
    return rows


def _is_whole(entry: Evaluation) -> bool:
    return entry.retrieved is None or entry.retrieved.is_whole


def _mixtures(run: RunRecord) -> dict[KnnLm, str]:
    """Return the label of each kNN-LM over the baseline; they differ in settings, or in what was tuned."""
    entries = run.baseline.evaluations if run.baseline else ()
    return distinct({replace(entry.knn, neighbors=""): KNN_LM for entry in entries if entry.knn})


def distinct(names: Mapping[Any, str]) -> dict[Any, str]:
    """Number the names that occur more than once."""
    counts: Counter[str] = Counter()
    distinct = {}
    for key, name in names.items():
        counts[name] += 1
        distinct[key] = name if counts[name] == 1 else f"{name} ({counts[name]})"
    return distinct


def cell_baseline(sweep: SweepRecord, cell: Cell) -> RunRecord | None:
    """Return the run of the baseline that a cell's RETRO is compared with.

    It is the cell's own run where it has a baseline; else that of a cell which differs in one axis alone (such as
    `retrieval.k=0`) and trained a model of the same size on the same corpus; else None.
    """
    if cell.run is None or cell.run.baseline or cell.run.retro is None:
        return cell.run if cell.run and cell.run.baseline else None
    retro = cell.run.retro
    for other in sweep.cells:
        baseline = other.run.baseline if other.run else None
        changed = sum(other.overrides.get(axis) != cell.overrides.get(axis) for axis in sweep.axes)
        if baseline and changed <= 1 and (baseline.size, baseline.corpus) == (retro.size, retro.corpus):
            return other.run
    return None


def cell_scores(
    sweep: SweepRecord, cell: Cell, text: ScoredText | None = None
) -> tuple[Scored | None, Scored | None, Scored | None]:
    """Return a cell's scores on a text, by default the main one: its baseline's, with retrieval off, and on."""
    run, origin = cell.run, cell_baseline(sweep, cell)
    retro = run.retro if run else None
    reference = Scored.of(origin, origin.baseline, 0, text) if origin else None
    return reference, Scored.of(run, retro, 0, text), Scored.of(run, retro, retro.k, text) if retro else None


def _run_row(
    name: str,
    run: RunRecord,
    model: ModelRecord,
    k: int,
    entry: Evaluation | None,
    references: tuple[Scored | None, ...],
    shown: Shown,
    seeds: tuple[Evaluation, ...] = (),
) -> tuple[Value, ...]:
    """Return a row; `references` are the baseline and, if there is one, the longer baseline.

    With `seeds`, scores with random parts of the database, `entry` is their mean.
    """
    scored = Scored(run, model, entry, seeds) if entry else None
    size = (model.parameters.total, model.parameters.non_embedding, model.tokens, model.flops)
    scores: tuple[Value, ...] = (None,) * 5
    if entry and scored:
        scores = (entry.flops_per_byte, entry.bits_per_byte, *scored.spread, entry.perplexity)
    if shown.words:
        scores = (*scores, entry.word_perplexity if entry else None)
    if shown.accuracy:
        scores = (*scores, *_accuracy_values(run, model, seeds or ((entry,) if entry else ())))
    first, *second = (
        gain(scored, reference)
        if entry and scored and reference and (entry.knn or model not in (reference.model, run.baseline))
        else None
        for reference in references
    )
    values = [value for difference in second for value in gain_values(difference)[:-1]]
    return (name, *size, k, *scores, *gain_values(first), *values)


def _accuracy_values(run: RunRecord, model: ModelRecord, entries: tuple[Evaluation, ...]) -> tuple[Value, ...]:
    """Return the values of the column `ACCURACY`; of several seeds the mean, which has no interval."""
    accuracies = [entry.accuracy for entry in entries if entry.accuracy is not None]
    if not accuracies:
        return (None, None, None)
    if len(entries) > 1:
        return (float(np.mean(accuracies)), None, None)
    correct = run.chunk_scores(model, entries[0]).correct
    assert correct is not None
    return (*accuracies, *(share_interval(correct) or (None, None)))


def gain_values(difference: Gain | None) -> tuple[Value, ...]:
    """Return the values of the columns `GAIN` and `GAIN_PERCENT`."""
    if difference is None:
        return (None, None, None, None)
    low, high = difference.interval or (None, None)
    return (difference.bits_per_byte, low, high, difference.percent)
