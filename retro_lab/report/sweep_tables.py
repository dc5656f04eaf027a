"""The tables of a sweep: cell against cell, on its main text and on all of them, beside what the paper printed."""

from collections.abc import Callable
from dataclasses import replace

from retro_lab.report import formats
from retro_lab.report.comparison import (
    BASELINE,
    FLOPS,
    FLOPS_NOTE,
    GAIN,
    GAIN_NOTE,
    GAIN_PERCENT,
    OFF,
    ON,
    PARAMETERS,
    TOKENS,
    cell_baseline,
    cell_scores,
    flops_ratio,
    gain,
    gain_values,
)
from retro_lab.report.compute import compute_multiplier
from retro_lab.report.published import Block, published
from retro_lab.report.tables import Column, Table, Value
from retro_lab.runs.records import Evaluation, ScoredText
from retro_lab.runs.sweeps import Cell, SweepRecord

STATUS_COLORS = {"done": "green", "failed": "bold red", "missing": "yellow"}
SWEEP_NOTE = "Baseline: the score that the row's gain is measured against."
MULTIPLIER_NOTE = (
    "Compute multiplier: how many times RETRO's training FLOPs the baseline needs to be as good as it, by a power law "
    "through the cell's two baselines; with the embedding of the database and the search counted, and without."
)
PAPER_NOTE = "Paper: what Borgeaud et al. 2022 printed in the table that the sweep is of."
MULTIPLIER = Column("compute_multiplier", "Compute multi\u00adplier", formats.ratio, terminal=False)
WITH_DATABASE = Column("compute_multiplier_with_database", "with database", formats.ratio, terminal=False)
PRINTED: dict[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(("table14", "figure1_left", "figure5", "figure6"), (("table14", "c4"),)),
    "figure1_middle": (("table14", "database"),),
    "figure1_right": (("table14", "k"),),
    "table4": (("table4", "perplexity"),),
    "table13": (("table13", "table13"),),
    "table15": (("table15", "table15"),),
}
"""Tables and blocks of the paper's numbers that a sweep's page shows, by the sweep's file."""
MEASURES: dict[str, tuple[Callable[[Evaluation], float | None], Callable[[float], str]]] = {
    "bits per byte": (lambda entry: entry.bits_per_byte, formats.score),
    "accuracy": (lambda entry: entry.accuracy, formats.score),
    "perplexity per word": (lambda entry: entry.word_perplexity, formats.perplexity),
}


def sweep_table(sweep: SweepRecord) -> Table:
    """Give every cell of a sweep a row: its overrides, its status, its scores, and the paper's for the same variant."""
    axes = _axes(sweep)
    multipliers = [_multipliers(cell) for cell in sweep.cells]
    has_multipliers = any(value is not None for values in multipliers for value in values)
    papers = [_of_variant(cell) for cell in sweep.cells]
    has_paper = any(value is not None for value in papers)
    columns = (
        *axes,
        Column("status", "Status", numeric=False, colors=STATUS_COLORS),
        replace(PARAMETERS, terminal=False),
        TOKENS,
        Column("baseline_bits_per_byte", "Base\u00adline", formats.score),
        Column("off_bits_per_byte", OFF, formats.score),
        Column("on_bits_per_byte", ON, formats.score),
        GAIN,
        replace(GAIN_PERCENT, terminal=False),
        FLOPS,
        *((MULTIPLIER, WITH_DATABASE) if has_multipliers else ()),
        *([Column("paper_bits_per_byte", "Paper", formats.score, terminal=False)] if has_paper else ()),
    )
    rows = tuple(
        (*_sweep_row(sweep, cell), *(values if has_multipliers else ()), *([paper] if has_paper else ()))
        for cell, values, paper in zip(sweep.cells, multipliers, papers, strict=True)
    )
    notes = (
        f"{BASELINE}, {OFF}, {ON}: bits per byte. {SWEEP_NOTE}",
        GAIN_NOTE,
        FLOPS_NOTE,
        *([MULTIPLIER_NOTE] if has_multipliers else ()),
        *([PAPER_NOTE] if has_paper else ()),
    )
    return Table(sweep.name, columns, rows, notes)


def texts_table(sweep: SweepRecord) -> Table | None:
    """Give every cell and text a row for each of its measures; None if all cells were scored on one text alone."""
    rows = []
    for cell in sweep.cells:
        origin = cell_baseline(sweep, cell)
        model = (cell.run.retro if cell.run else None) or (origin.baseline if origin else None)
        for text in model.texts if model else ():
            rows += _text_rows(sweep, cell, text)
    if len({row[len(_axes(sweep))] for row in rows}) < 2:
        return None
    columns = (
        *_axes(sweep),
        Column("text", "Text", numeric=False),
        Column("measure", "Measure", numeric=False),
        Column("baseline", "Base\u00adline", str),
        Column("off", OFF, str),
        Column("on", ON, str),
        GAIN,
        *(Column(f"paper_{key}", f"Paper: {name}", str, terminal=False) for key, name in PAPER_COLUMNS.items()),
    )
    return Table("Every text", columns, tuple(rows), (GAIN_NOTE, PAPER_NOTE))


PAPER_COLUMNS = {"baseline": BASELINE, "off": OFF, "on": ON}


def printed_tables(sweep: SweepRecord) -> tuple[Table, ...]:
    """Return what the paper printed of the experiments of a sweep."""
    names = dict.fromkeys(cell.overrides.get("sweep", "") for cell in sweep.cells)
    blocks = dict.fromkeys(block for name in names for block in PRINTED.get(name, ()))
    return tuple(_printed(table, name, published()[table][name]) for table, name in blocks)


def _printed(table: str, name: str, block: Block) -> Table:
    """Show a block of the paper's numbers."""
    which = f"Table {table.removeprefix('table')}" + (f", {name}" if name != table else "")
    columns = [
        Column("row", "Row", numeric=False),
        *(Column(column, column, "{:g}".format) for column in block.columns),
    ]
    rows = tuple((row, *printed) for row, printed in block.rows.items())
    note = f"{block.metric.replace('_', ' ')} ({block.unit}), Borgeaud et al. 2022."
    return Table(f"What the paper printed: {which}", tuple(columns), rows, (note,))


def _axes(sweep: SweepRecord) -> list[Column]:
    return [Column(axis, axis, numeric=False) for axis in sweep.axes] or [Column("cell", "Cell", numeric=False)]


def _labels(sweep: SweepRecord, cell: Cell) -> list[Value]:
    return [cell.overrides.get(axis) for axis in sweep.axes] or [cell.name]


def _of_variant(cell: Cell) -> float | None:
    """Return the paper's score of an ablation (Table 13)."""
    if cell.overrides.get("sweep") != "table13":
        return None
    return published()["table13"]["table13"].value(cell.overrides.get("variant", ""), "172m")


def _multipliers(cell: Cell) -> tuple[float | None, float | None]:
    found = compute_multiplier(cell.run) if cell.run else None
    return (found.of_training, found.with_database) if found else (None, None)


def _sweep_row(sweep: SweepRecord, cell: Cell) -> tuple[Value, ...]:
    origin = cell_baseline(sweep, cell)
    model = (cell.run.retro if cell.run else None) or (origin.baseline if origin else None)
    reference, off, on = cell_scores(sweep, cell)
    scores = (scored.entry.bits_per_byte if scored else None for scored in (reference, off, on))
    size = (model.parameters.total, model.tokens) if model else (None, None)
    flops = flops_ratio(on.entry, reference.entry) if on and reference else None
    return (*_labels(sweep, cell), cell.status, *size, *scores, *gain_values(gain(on, reference))[:4], flops)


def _text_rows(sweep: SweepRecord, cell: Cell, text: ScoredText) -> list[tuple[Value, ...]]:
    rows = []
    scored = cell_scores(sweep, cell, text)
    reference, _, on = scored
    for measure, (read, show) in MEASURES.items():
        values = [read(each.entry) if each else None for each in scored]
        if not any(value is not None for value in values):
            continue
        shown = [None if value is None else show(value) for value in values]
        difference = gain_values(gain(on, reference))[:3] if measure == "bits per byte" else (None, None, None)
        paper = [_paper(cell, text, measure, label, show) for label in PAPER_COLUMNS.values()]
        rows.append((*_labels(sweep, cell), text.name, measure, *shown, *difference, *paper))
    return rows


def _paper(cell: Cell, text: ScoredText, measure: str, label: str, show: Callable[[float], str]) -> str | None:
    """Return what the paper has of the same size and text (Table 14), or of its largest size on the Pile (Table 15)."""
    size, (base, _, part) = cell.overrides.get("size", ""), text.name.partition("/")
    block: Block | None
    if base == "pile" and size == "7_5b":
        block, row = published()["table15"]["table15"], part
        column = {BASELINE: "Baseline 7B", ON: "RETRO 7.5B"}.get(label)
    else:
        block, row, column = published()["table14"].get(text.name), label, size
    if block is None or column is None or block.metric != measure.replace(" ", "_"):
        return None
    found = block.value(row, column)
    return None if found is None else show(found)
