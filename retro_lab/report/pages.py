"""HTML pages of a report: static, without scripts or external resources, and with all values escaped.

Only the pages of documents (`retro_lab.report.inspection`) have a script of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from retro_lab.report import formats
from retro_lab.report.caveats import run_caveats, sweep_caveats
from retro_lab.report.facts import parameter_table, provenance_table, training_table
from retro_lab.report.leakage import Leakage, leakage_table
from retro_lab.report.tables import Table
from retro_lab.runs.examples import Examples
from retro_lab.runs.folder import CONFIG_NAME
from retro_lab.runs.records import RunRecord
from retro_lab.runs.sweeps import Cell, SweepRecord

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Picture:
    """A figure on a page: file name without its extension, alternative text, and caption."""

    name: str
    alternative: str
    caption: str


def run_page(
    run: RunRecord,
    table: Table,
    pictures: list[Picture],
    leakage: Sequence[Leakage],
    leakage_pictures: list[Picture],
    examples: Examples | None,
    inspected: Sequence[str],
) -> str:
    """Return the page of a run.

    Args:
        run: Whose page it is.
        table: Its scores.
        pictures: The figures of them.
        leakage: The gain by overlap.
        leakage_pictures: The figures of it.
        examples: Chunks beside their neighbors; None if the run has none.
        inspected: Names of the pages of documents, SPLIT_NUMBER.
    """
    return render(
        "run.html.j2",
        title=run.name,
        table=table,
        pictures=pictures,
        details=[training_table(run), parameter_table(run), provenance_table(run)],
        caveats=run_caveats(run, leakage),
        leakage=leakage_table(leakage),
        leakage_pictures=leakage_pictures,
        examples=examples,
        inspected=inspected,
        error=run.error,
        settings=_settings(run.folder / CONFIG_NAME),
    )


def sweep_page(
    sweep: SweepRecord,
    table: Table,
    pictures: list[Picture],
    links: list[str | None],
    *,
    texts: Table | None,
    claims: Table | None,
    printed: Sequence[Table],
) -> str:
    """Return the page of a sweep.

    Args:
        sweep: The sweep.
        table: Of its cells.
        pictures: Its figures.
        links: Addresses of the cells' own pages, None for a cell without one.
        texts: Scores on every text, if there are several.
        claims: What the paper says of it, if anything.
        printed: Tables of the paper.
    """
    finished = next((cell.run for cell in sweep.cells if cell.run and cell.run.models), None)
    return render(
        "sweep.html.j2",
        title=sweep.name,
        table=table,
        links=links,
        texts=texts,
        claims=claims,
        printed=printed,
        pictures=pictures,
        details=[provenance_table(finished)] if finished else [],
        caveats=sweep_caveats(sweep),
        counts={status: len(sweep.with_status(status)) for status in ("done", "failed", "missing")},
        failures=[(cell.name, cell.error) for cell in sweep.with_status("failed")],
    )


def cell_link(cell: Cell) -> str:
    """Return the address of a cell's page relative to the sweep's; folder names can hold quotes, spaces and commas."""
    return f"../{quote(cell.name, errors='surrogateescape')}/report/index.html"


def render(template: str, **values: object) -> str:
    """Return a page: a template of this folder, filled in with `values`, all of which are escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # Always on, because jinja2's own selection by extension does not include .html.j2.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(no_value=formats.NO_VALUE, **values)


def _settings(path: Path) -> str | None:
    """Return the configuration that the run recorded; None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
