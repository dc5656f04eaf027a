"""One table says the same in the terminal, in Markdown and in CSV."""

import csv
import io
from itertools import pairwise

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from retro_lab.report import formats
from retro_lab.report.tables import Column, Table

COLUMNS = (
    Column("name", "Name", numeric=False),
    Column("status", "Status", numeric=False, colors={"done": "green"}),
    Column("tokens", "Training tokens", formats.count),
    Column("score", "RETRO[On]", formats.score),
)
HOSTILE = "[red]a|b\\|<script>x</script>\nnext"
TABLE = Table("RETRO[On] [bold]", COLUMNS, ((HOSTILE, "done", 1_500_000, 1.23456), ("two", "missing", None, None)), ())


def printed(table: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table.to_rich())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_csv_holds_the_values_in_full() -> None:
    rows = list(csv.reader(io.StringIO(TABLE.to_csv())))
    assert rows[0] == ["name", "status", "tokens", "score"]
    assert rows[1] == [HOSTILE, "done", "1500000", "1.23456"]
    assert rows[2] == ["two", "missing", "", ""]


def test_markdown_parses_back_to_the_same_texts() -> None:
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(TABLE.to_markdown())
    cells = [
        "".join(child.content for child in token.children or [])
        for before, token in pairwise(tokens)
        if before.type in ("th_open", "td_open")
    ]
    assert not any(child.type.startswith("html") for token in tokens for child in token.children or [])
    assert cells == [
        *(column.title for column in COLUMNS),
        *(HOSTILE.replace("\n", " "), "done", "1.5M", "1.235"),
        *("two", "missing", formats.NO_VALUE, formats.NO_VALUE),
    ]


def test_brackets_are_text_in_the_terminal() -> None:
    text = printed(TABLE, 120)
    assert "RETRO[On] [bold]" in text
    assert "[red]a|b" in text
    assert "1.5M" in text


def test_terminal_commands_are_shown_and_not_obeyed() -> None:
    command = "\x1b]0;title\x07"
    text = printed(Table(command, (Column("name", command, numeric=False),), ((command,),), (command,)), 120)
    assert text.count("\\x1b]0;title\\x07") == 4
    assert "\x1b" not in text


def test_a_narrow_terminal_keeps_numbers_whole() -> None:
    text = printed(TABLE, 40)
    assert "1.5M" in text
    assert "1.235" in text


def test_rows_must_fit_the_columns() -> None:
    with pytest.raises(AssertionError):
        Table("", COLUMNS, (("one",),))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (999, "999"),
        (999_900, "1M"),
        (172_000_000, "172M"),
        (1_451_000_000, "1.45B"),
        (1.75e12, "1.75T"),
    ],
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert formats.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(1, "100%"), (0.99999, "99.9%"), (0.5, "50.0%"), (0, "0%")])
def test_only_everything_is_all(value: float, text: str) -> None:
    assert formats.share(value) == text


@pytest.mark.parametrize(("value", "text"), [(3.21, "3.2 s"), (59.99, "1 min 00 s"), (7384, "2 h 03 min")])
def test_times_have_two_units(value: float, text: str) -> None:
    assert formats.duration(value) == text
