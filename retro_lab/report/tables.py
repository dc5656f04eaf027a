"""One table for four outputs: the terminal, Markdown, CSV and (through `texts`) the HTML page."""

import csv
import html
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
    """A column: `key` names it in CSV, `heading` everywhere else, and `show` turns a value into text."""

    key: str
    heading: str
    """Title, with soft hyphens where it may be hyphenated."""
    show: Callable[[Any], str] = str
    numeric: bool = True
    colors: Mapping[str, str] = field(default_factory=dict)
    """Colors of certain values in the terminal."""

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
    """Values in rows and columns; None is a value that was not measured."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that every row is as long as the header."""
        assert all(len(row) == len(self.columns) for row in self.rows)

    def texts(self) -> list[list[str]]:
        """Return the rows as displayed text."""
        return [
            [NO_VALUE if value is None else column.show(value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

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
        narrow = sum(not column.numeric for column in self.columns) > 1
        for column in self.columns:
            # Numbers are not wrapped and their titles are stacked, so that names have room in 80 characters.
            title = column.stacked(narrow) if column.numeric else column.title
            align: Literal["left", "right"] = "right" if column.numeric else "left"
            whole = column.numeric or bool(column.colors)
            table.add_column(Text(visible(title)), justify=align, overflow="fold", no_wrap=whole)
        for row in self.texts():
            table.add_row(
                *(
                    Text(visible(text), style=column.colors.get(text, ""))
                    for column, text in zip(self.columns, row, strict=True)
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
        writer.writerow(column.key for column in self.columns)
        writer.writerows(self.rows)
        return text.getvalue()


def _markdown_cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")
