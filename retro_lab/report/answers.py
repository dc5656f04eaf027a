"""The table of questions answered right, beside the published numbers of Table 5 (Borgeaud et al. 2022)."""

from collections.abc import Sequence

from retro_lab.report.formats import count
from retro_lab.report.published import published
from retro_lab.report.tables import Column, Table, Value
from retro_lab.runs.answers import AnswerRecord
from retro_lab.runs.folder import BASELINE, LONGER_BASELINE, RETRO

LABELS = {BASELINE: "Baseline", LONGER_BASELINE: "Longer baseline", RETRO: "RETRO"}
COLUMNS = (
    Column("model", "Model", numeric=False),
    Column("parameters", "Parameters", count),
    Column("k", "Passages"),
    Column("split", "Questions", numeric=False),
    Column("questions", "Count", lambda value: f"{value:,}"),
    Column("exact_match", "Exact match", lambda value, low, high: _percent(value, low, high), more=("low", "high")),
)
NOTES = (
    "Exact match: percent of the questions whose answer is one of the right ones, apart from case, punctuation and "
    "articles; in brackets, the 95% interval over questions.",
    "Table 5: published for the test questions of Natural Questions, each model with its own passages.",
)


def answers_table(records: Sequence[AnswerRecord]) -> Table:
    """Return how each model answers each file with each number of passages, and then Table 5.

    Args:
        records: Of the models of a run.
    """
    rows: list[tuple[Value, ...]] = []
    for record in records:
        for entry in record.scores:
            share = (entry.exact_match, entry.low, entry.high)
            level, low, high = (None if value is None else 100 * value for value in share)
            split = f"{entry.split}, {entry.file}"
            rows.append(
                (LABELS[record.model], record.parameters.total, entry.k, split, entry.questions, level, low, high)
            )
    for (model, _), value in published()["table5"]["table5"].cells.items():
        rows.append((model, None, None, "Table 5", None, value, None, None))
    cut = sorted({(entry.file, entry.cut_questions) for record in records for entry in record.scores})
    notes = [
        f"{number:,} questions of {file} are longer than a chunk, and lost their beginning."
        for file, number in cut
        if number
    ]
    return Table("Questions answered", COLUMNS, tuple(rows), (*NOTES, *notes))


def _percent(value: float, low: float | None, high: float | None) -> str:
    interval = "" if low is None or high is None else f" [{low:.1f}, {high:.1f}]"
    return f"{value:.1f}{interval}"
