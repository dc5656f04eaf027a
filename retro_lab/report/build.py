"""Writes a report beside the results it is made from: a page, figures and tables, from the folder alone.

Layout, in the run's or the sweep's folder:

    report/index.html                      written last
    report/inspect/*.html                  pages of documents (`retro_lab.report.inspection`)
    report/figures/NAME.svg, NAME.png
    report/tables/NAME.csv, NAME.md        comparison; of a run leakage, of a sweep texts and claims
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure

from retro_lab.artifacts.disk import write_file
from retro_lab.errors import ArtifactError
from retro_lab.report.claims import claims_table, find
from retro_lab.report.comparison import run_table
from retro_lab.report.compute import compute_sentence
from retro_lab.report.figures import curve_figure, database_figure, neighbors_figure, sweep_figure
from retro_lab.report.inspection import INSPECTION_FOLDER
from retro_lab.report.leakage import Leakage, leakage_table, run_leakage
from retro_lab.report.overlap_figures import histogram_figure, leakage_figure, overlap_figure
from retro_lab.report.pages import Picture, cell_link, run_page, sweep_page
from retro_lab.report.paper_claims import paper_claims
from retro_lab.report.seeds import seed_sentences
from retro_lab.report.style import save
from retro_lab.report.sweep_figures import database_by_cell, neighbors_by_cell, overlap_by_cell, rows_figure
from retro_lab.report.sweep_tables import printed_tables, sweep_table, texts_table
from retro_lab.report.tables import Table
from retro_lab.runs.examples import load_examples
from retro_lab.runs.folder import RETRO
from retro_lab.runs.records import RESULT_NAME, RunRecord, load_run
from retro_lab.runs.sweeps import load_sweep

Key = TypeVar("Key")
Value = TypeVar("Value")

REPORT_FOLDER = "report"
COMPARISON, LEAKAGE, TEXTS, CLAIMS = "comparison", "leakage", "texts", "claims"
"""Names of the tables."""

CURVE = Picture(
    "curve",
    "Lines of held-out bits per byte against training tokens, one for each model.",
    "Measured during training on the first documents of the validation split; the table scores other documents, so its "
    "levels differ.",
)
NEIGHBORS = Picture(
    "neighbors",
    "Held-out bits per byte against the number of neighbors retrieved for each chunk.",
    "One trained RETRO, evaluated with several numbers of neighbors. Bars: 95% intervals of the distance from the "
    "baseline, over documents.",
)
DATABASE = Picture(
    "database",
    "Held-out bits per byte against the tokens of the database that neighbors are retrieved from.",
    "One trained RETRO, evaluated with the first documents of its database, and with random parts of it: the mean and "
    "the range over seeds. Bars: 95% intervals of the distance from the baseline, over documents.",
)
OVERLAP = Picture(
    "leakage",
    "The gain of RETRO[On] over the baseline against the largest overlap of the chunks that are scored.",
    "On the first text, all of whose chunks have r(C) up to 1. Bars: 95% intervals over documents.",
)
SCORES = Picture(
    "overlap",
    "Bits per byte against the largest overlap of the chunks that are scored.",
    "The scores of the table above, as in the paper's Figure 6.",
)
HISTOGRAM = Picture(
    "overlaps",
    "The share of each text's chunks by their overlap with what is retrieved.",
    "How many chunks have how much in common with what is retrieved for them, as in the paper's Figure 10.",
)
AXIS = Picture(
    "sweep",
    "Held-out bits per byte against the value that the sweep varies.",
    "Each point is a separate model, scored on all held-out text; the numbers on the right belong to the last points. "
    "Bars: 95% intervals of the distance from the baseline, over documents.",
)
ROWS = Picture(
    "cells",
    "Held-out bits per byte of each cell.",
    "Each cell's models, scored on the first text.",
)
NEIGHBORS_BY_CELL = Picture(
    "neighbors",
    "Held-out bits per byte against the number of neighbors retrieved for each chunk, a line for each cell.",
    "Each cell's one RETRO, evaluated with several numbers of neighbors; 0 is RETRO[Off].",
)
DATABASE_BY_CELL = Picture(
    "database",
    "Held-out bits per byte against the tokens of the database, a line for each cell.",
    "Each cell's one RETRO, evaluated with parts of its database; random parts are the mean over their seeds, and 0 is "
    "RETRO[Off].",
)
OVERLAP_BY_CELL = Picture(
    "overlap",
    "Held-out bits per byte against the largest overlap of the chunks that are scored, a line for each cell.",
    "Scores of RETRO[On] on the chunks with r(C) up to each value (Borgeaud et al. 2022, Figure 6).",
)


@dataclass(frozen=True)
class WrittenReport:
    """A report's location and content; `failures` are the errors of a sweep's failed cells by cell name.

    `tables` are those to print, by name.
    """

    page: Path
    paths: tuple[Path, ...]
    tables: Mapping[str, Table]
    failures: Mapping[str, str]


def write_run_report(run_folder: Path) -> WrittenReport:
    """Write the report of the run in `run_folder`.

    Raises:
        ArtifactError: No model there is finished, a result is damaged, or the report cannot be written.
    """
    run = load_run(run_folder)
    if not run.models:
        raise ArtifactError(f"{run_folder} holds no finished model: no {RESULT_NAME} in its retro or baseline folder.")
    return _write_run(run)


def write_sweep_report(sweep_folder: Path) -> WrittenReport:
    """Write the report of the sweep in `sweep_folder`, and one for each of its cells that has results.

    Raises:
        ArtifactError: The folder holds no sweep, or the report cannot be written.
    """
    sweep = load_sweep(sweep_folder)
    links: list[str | None] = []
    for cell in sweep.cells:
        has_page = cell.run is not None and bool(cell.run.models)
        if has_page and cell.run:
            _write_run(cell.run)
        links.append(cell_link(cell) if has_page else None)
    table = sweep_table(sweep)
    table = replace(table, notes=(*table.notes, *seed_sentences(sweep)))
    axis = sweep_figure(sweep)
    figures = _present(
        {
            AXIS: axis,
            ROWS: None if axis else rows_figure(sweep),
            NEIGHBORS_BY_CELL: neighbors_by_cell(sweep),
            DATABASE_BY_CELL: database_by_cell(sweep),
            OVERLAP_BY_CELL: overlap_by_cell(sweep),
        }
    )
    claims = claims_table(find(paper_claims(sweep), sweep))
    texts = texts_table(sweep)
    page = sweep_page(sweep, table, list(figures), links, texts=texts, claims=claims, printed=printed_tables(sweep))
    failures = {cell.name: cell.error or "" for cell in sweep.with_status("failed")}
    tables = _present({COMPARISON: table, TEXTS: texts, CLAIMS: claims})
    return _write(sweep_folder / REPORT_FOLDER, page, tables, figures, failures)


def _write_run(run: RunRecord) -> WrittenReport:
    table = run_table(run)
    if multiplier := compute_sentence(run):
        table = replace(table, notes=(*table.notes, multiplier))
    figures = _present({CURVE: curve_figure(run), NEIGHBORS: neighbors_figure(run), DATABASE: database_figure(run)})
    leakage = run_leakage(run)
    overlap_figures = _present({OVERLAP: leakage_figure(leakage), **_overlap_figures(leakage)})
    inspected = sorted(path.stem for path in (run.folder / INSPECTION_FOLDER).glob("*.html"))
    page = run_page(
        run,
        table,
        list(figures),
        leakage,
        list(overlap_figures),
        load_examples(run.folder / RETRO),
        inspected,
    )
    tables = _present({COMPARISON: table, LEAKAGE: leakage_table(leakage)})
    return _write(run.folder / REPORT_FOLDER, page, tables, figures | overlap_figures, {})


def _overlap_figures(found: Sequence[Leakage]) -> dict[Picture, Figure]:
    """Draw the scores of each text by overlap, and the overlaps of all of them."""
    if not found:
        return {}
    scores = {
        replace(SCORES, name=f"{SCORES.name}_{number}"): overlap_figure(leakage)
        for number, leakage in enumerate(found, 1)
    }
    return scores | {HISTOGRAM: histogram_figure(found)}


def _present(found: Mapping[Key, Value | None]) -> dict[Key, Value]:
    return {key: value for key, value in found.items() if value is not None}


def _write(
    folder: Path,
    page: str,
    tables: Mapping[str, Table],
    figures: Mapping[Picture, Figure],
    failures: Mapping[str, str],
) -> WrittenReport:
    contents: dict[str, bytes] = {}
    for name, table in tables.items():
        contents[f"tables/{name}.csv"] = _encode(table.to_csv())
        contents[f"tables/{name}.md"] = _encode(table.to_markdown())
    for picture, figure in figures.items():
        contents[f"figures/{picture.name}.svg"] = save(figure, "svg")
        contents[f"figures/{picture.name}.png"] = save(figure, "png")
    # The page comes last, so that everything it shows exists by then.
    contents["index.html"] = _encode(page)
    paths = tuple(write_file(folder / name, content) for name, content in contents.items())
    _remove_stale(folder, paths)
    return WrittenReport(paths[-1], paths, tables, failures)


def _encode(text: str) -> bytes:
    # Command lines and file names can hold bytes that are not valid text; Python keeps them as lone surrogates.
    return text.encode("utf-8", errors="backslashreplace")


def _remove_stale(folder: Path, paths: tuple[Path, ...]) -> None:
    """Delete figures and tables of an earlier report that this one does not have."""
    for name in ("figures/*.svg", "figures/*.png", "tables/*.csv", "tables/*.md"):
        for path in folder.glob(name):
            if path not in paths:
                path.unlink(missing_ok=True)
