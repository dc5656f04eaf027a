"""How `task=plan` writes numbers and lays out sections."""

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

SI_PREFIXES = ("", "k", "M", "G", "T", "P")
BYTES = ("B", "kB", "MB", "GB", "TB", "PB")


def scaled(count: float, units: Sequence[str]) -> str:
    """Write a count with the largest unit that leaves at least 1; each unit is a thousand times the one before."""
    power = 0
    while count >= 1000 and power + 1 < len(units):
        count, power = count / 1000, power + 1
    return f"{count:,.3g} {units[power]}" if count else "-"


def section(title: str, note: str, rows: Mapping[str, Sequence[str]], columns: Sequence[str] = ("",)) -> Group:
    """Lay out rows by name under a title and a note; columns without names are left-aligned."""
    table = Table(box=None, padding=(0, 2), show_header=any(columns))
    for number, column in enumerate(("", *columns)):
        table.add_column(column, justify="right" if any(columns) and number else "left", no_wrap=True)
    for name, values in rows.items():
        table.add_row(name, *values, style="bold" if name.startswith("total") else "")
    return Group(Text(title, style="bold cyan"), Text(note, style="dim"), table, Text())
