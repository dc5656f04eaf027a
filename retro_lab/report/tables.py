"""One table for four outputs: the terminal, Markdown, CSV and (through `texts`) the HTML page."""

import csv
import html
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from retro_lab.console import visible
from retro_lab.report.formats import NO_VALUE

SOFT_HYPHEN = "\u00ad"
Value = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A column: `key` names it in CSV, `heading` everywhere else, and `show` turns its values into text."""

    key: str
    heading: str
    """Title, with soft hyphens where it may be broken."""
    show: Callable[..., str] = str
    numeric: bool = True
    colors: Mapping[str, str] = field(default_factory=dict)
    """Colors of certain values in the terminal."""
    more: tuple[str, ...] = ()
    """Keys of further values that belong to the first: CSV has a column for each, and `show` is handed them too."""
    terminal: bool = True
    """Whether a terminal shows it: on 80 characters there is no room for everything."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all values."""
        return self.key, *self.more

    @property
    def title(self) -> str:
        """The heading as one line."""
        return self.heading.replace(SOFT_HYPHEN, "")

    def stacked(self, narrow: bool) -> str:
        """Return the heading with one word per line; if it has to be narrow, words are broken too."""
        words = re.sub(r" |(?=\[)", "\n", self.heading)
        return words.replace(SOFT_HYPHEN, "-\n" if narrow else "")


@dataclass(frozen=True)
class Table:
    """Values in rows, one for each key of the columns; None is a value that was not measured."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse rows that are not as long as the header."""
        assert all(len(row) == len(self.keys) for row in self.rows)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all columns."""
        return tuple(key for column in self.columns for key in column.keys)

    def texts(self) -> list[list[str]]:
        """Return the rows as they are shown."""
        return [list(map(_shown, self.columns, self._by_column(row))) for row in self.rows]

    def _by_column(self, row: tuple[Value, ...]) -> Iterator[tuple[Value, ...]]:
        values = iter(row)
        return (tuple(islice(values, len(column.keys))) for column in self.columns)

    def to_rich(self) -> RichTable:
        """Return the table for a Rich console, with control characters made visible."""
        # Text and escape, because Rich would read the [On] of "RETRO[On]" as a style.
        table = RichTable(
            title=escape(visible(self.title)),
            caption=escape(visible("\n".join(self.notes))) or None,
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        columns = [column for column in self.columns if column.terminal]
        narrow = sum(not column.numeric for column in columns) > 1 or any(column.more for column in columns)
        for column in columns:
            # Numbers stay whole and their titles stand in narrow stacks, so that names have room on 80 characters.
            title = column.stacked(narrow) if column.numeric else column.title
            align: Literal["left", "right"] = "right" if column.numeric else "left"
            whole = column.numeric or bool(column.colors)
            table.add_column(Text(visible(title)), justify=align, overflow="fold", no_wrap=whole)
        for row in self.texts():
            table.add_row(
                *(
                    # An interval or a range stands below its value: side by side they are a third of 80 characters.
                    Text(_stacked(visible(text)) if column.more else visible(text), style=column.colors.get(text, ""))
                    for column, text in zip(self.columns, row, strict=True)
                    if column.terminal
                )
            )
        return table

    def to_markdown(self) -> str:
        """Return the table in GitHub's Markdown, with the notes below it."""
        rules = ["---:" if column.numeric else ":---" for column in self.columns]
        lines = [[_markdown_cell(column.title) for column in self.columns], rules]
        lines += [[_markdown_cell(text) for text in row] for row in self.texts()]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([table, *(_markdown_cell(note) for note in self.notes)]) + "\n"

    def to_csv(self) -> str:
        """Return the values in full precision below one header line; a missing value is an empty field."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.keys)
        writer.writerows(self.rows)
        return text.getvalue()


def _stacked(text: str) -> str:
    """Put what is in brackets on a line of its own."""
    return text.replace(" [", "\n[").replace(" (", "\n(")


def _shown(column: Column, values: tuple[Value, ...]) -> str:
    return NO_VALUE if values[0] is None else column.show(*values)


def _markdown_cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")
