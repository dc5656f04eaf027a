"""The tables of a report: RETRO against its baseline in one run, and cell against cell in a sweep."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retro_lab.report import formats
from retro_lab.report.tables import Column, Table, Value
from retro_lab.runs.records import Evaluation, ModelRecord, RunRecord, ScoredText
from retro_lab.runs.sweeps import Cell, SweepRecord

BASELINE, OFF, ON = "Baseline", "RETRO[Off]", "RETRO[On]"
STATUS_COLORS = {"done": "green", "failed": "bold red", "missing": "yellow"}

GAIN_NOTE = "Gain: bits per byte below the baseline, also as a share of the baseline's. Above zero is better."
RUN_NOTE = (
    "Tokens: seen in training, including padding. k: neighbors that each chunk retrieves during scoring. Perplexity is "
    "per token."
)
SWEEP_NOTE = "Baseline: the score that the row's gain is measured against."

PARAMETERS = Column("parameters", "Para\u00admeters", formats.count)
NON_EMBEDDING = Column("non_embedding_parameters", "Without embed\u00addings", formats.count)
TOKENS = Column("training_tokens", "Tokens", formats.count)
GAIN = Column("gain_bits_per_byte", "Gain", formats.signed_score)
GAIN_PERCENT = Column("gain_percent", "Gain %", formats.signed_percent)


@dataclass(frozen=True)
class Gain:
    """How far a score is below the baseline's, in bits per byte and in percent of the baseline's."""

    bits_per_byte: float
    percent: float


def gain(evaluation: Evaluation | None, baseline: Evaluation | None) -> Gain | None:
    """Compare two scores; None if one is missing or they were not measured on the same text in the same way."""
    if evaluation is None or baseline is None or not baseline.bits_per_byte > 0:
        return None
    texts = ((entry.bytes, entry.documents, entry.text) for entry in (evaluation, baseline))
    if next(texts) != next(texts):
        return None
    saved = baseline.bits_per_byte - evaluation.bits_per_byte
    return Gain(saved, 100 * saved / baseline.bits_per_byte)


def run_table(run: RunRecord) -> Table:
    """Compare the baseline, RETRO[Off] and RETRO[On] of one run on each text that they were scored on.

    RETRO[On] has a row for each database and each k that it was scored with. The notes describe the texts, windows and
    databases.
    """
    texts = tuple(dict.fromkeys(text for model in run.models for text in model.texts))
    names = _distinct({text: text.name for text in texts})
    retrieved = [entry.retrieved for model in run.models for entry in model.evaluations if entry.retrieved]
    databases = {(found.database, found.source): found.database for found in retrieved}
    labels = _distinct(databases)
    several = len(texts) > 1
    rows = []
    for text in texts or (None,):
        rows += [(*([names[text]] if several and text else ()), *row) for row in _text_rows(run, text, labels)]
    columns = (
        *([Column("text", "Text", numeric=False)] if several else ()),
        Column("model", "Model", numeric=False),
        PARAMETERS,
        NON_EMBEDDING,
        TOKENS,
        Column("k", "k"),
        Column("bits_per_byte", "Bits per byte", formats.score),
        Column("perplexity", "Per\u00adplexity", formats.perplexity),
        GAIN,
        GAIN_PERCENT,
    )
    explained = [
        f"{names[text]}: {text.description}, in windows of {text.sequence_length:,} tokens every {text.stride:,}."
        for text in texts
    ]
    if databases:
        explained.append(f"Database: {'; '.join(dict.fromkeys(labels.values()))}.")
    return Table(run.name, columns, tuple(rows), (GAIN_NOTE, RUN_NOTE, *explained))


def _text_rows(
    run: RunRecord, text: ScoredText | None, labels: Mapping[tuple[str, str], str]
) -> list[tuple[Value, ...]]:
    """Return the rows of one text: retrieval off, as trained, and with other k; missing scores become dashes."""
    rows = []
    reference = run.baseline.evaluation(0, text) if run.baseline else None
    if run.baseline:
        rows.append(_run_row(BASELINE, run.baseline, 0, reference, None))
    if run.retro:
        scored = [entry for entry in run.retro.evaluations if entry.text == text]
        others = sorted({entry.k for entry in scored} - {0, run.retro.k})
        for k in (0, run.retro.k, *others):
            name = OFF if k == 0 else ON if k == run.retro.k else f"{ON}, k={k}"
            measured: list[Evaluation | None] = [entry for entry in scored if entry.k == k]
            for entry in measured or [None]:
                found = entry.retrieved if entry else None
                where = f", {labels[found.database, found.source]}" if found and len(labels) > 1 else ""
                rows.append(_run_row(name + where, run.retro, k, entry, reference))
    return rows


def _distinct(names: Mapping[Any, str]) -> dict[Any, str]:
    """Number the names that occur more than once."""
    counts: Counter[str] = Counter()
    distinct = {}
    for key, name in names.items():
        counts[name] += 1
        distinct[key] = name if counts[name] == 1 else f"{name} ({counts[name]})"
    return distinct


def sweep_table(sweep: SweepRecord) -> Table:
    """Give every cell of a sweep a row: its overrides, its status, and its scores."""
    axes = [Column(axis, axis, numeric=False) for axis in sweep.axes] or [Column("cell", "Cell", numeric=False)]
    columns = (
        *axes,
        Column("status", "Status", numeric=False, colors=STATUS_COLORS),
        PARAMETERS,
        TOKENS,
        Column("baseline_bits_per_byte", BASELINE, formats.score),
        Column("off_bits_per_byte", OFF, formats.score),
        Column("on_bits_per_byte", ON, formats.score),
        GAIN,
        GAIN_PERCENT,
    )
    rows = tuple(_sweep_row(sweep, cell) for cell in sweep.cells)
    return Table(sweep.name, columns, rows, (f"{BASELINE}, {OFF}, {ON}: bits per byte. {SWEEP_NOTE}", GAIN_NOTE))


def cell_baseline(sweep: SweepRecord, cell: Cell) -> ModelRecord | None:
    """Return the baseline that a cell's RETRO is compared with.

    It is the cell's own if there is one; else that of a cell which differs in only one axis (such as `retrieval.k=0`)
    and trained a model of the same size on the same corpus; else None.
    """
    if cell.run is None or cell.run.baseline or cell.run.retro is None:
        return cell.run.baseline if cell.run else None
    retro = cell.run.retro
    for other in sweep.cells:
        baseline = other.run.baseline if other.run else None
        changed = sum(other.overrides.get(axis) != cell.overrides.get(axis) for axis in sweep.axes)
        if baseline and changed <= 1 and (baseline.size, baseline.corpus) == (retro.size, retro.corpus):
            return baseline
    return None


def _run_row(
    name: str, model: ModelRecord, k: int, entry: Evaluation | None, reference: Evaluation | None
) -> tuple[Value, ...]:
    scores = (entry.bits_per_byte, entry.perplexity) if entry else (None, None)
    size = (model.parameters.total, model.parameters.non_embedding, model.tokens)
    return (name, *size, k, *scores, *_gain_values(gain(entry, reference)))


def _sweep_row(sweep: SweepRecord, cell: Cell) -> tuple[Value, ...]:
    labels = [cell.overrides.get(axis) for axis in sweep.axes] or [cell.name]
    retro = cell.run.retro if cell.run else None
    baseline = cell_baseline(sweep, cell)
    model = retro or baseline
    reference = baseline.evaluation(0) if baseline else None
    off, on = (retro.evaluation(0), retro.evaluation(retro.k)) if retro else (None, None)
    scores = (entry.bits_per_byte if entry else None for entry in (reference, off, on))
    size = (model.parameters.total, model.tokens) if model else (None, None)
    return (*labels, cell.status, *size, *scores, *_gain_values(gain(on, reference)))


def _gain_values(difference: Gain | None) -> tuple[Value, ...]:
    return (difference.bits_per_byte, difference.percent) if difference else (None, None)
