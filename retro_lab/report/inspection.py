"""Pages of documents, token by token, like Tables 16 to 21 of Borgeaud et al. 2022.

A page is one file: style and script are in it, and it asks for nothing else. Text of a corpus is escaped, and its
control characters are shown as such (`retro_lab.console.visible`). The browser runs the page's own script alone, known
by its checksum.

Layout, in the run's folder:

    report/inspect/SPLIT_NUMBER.html       the number is the document's place in the split; ids never become paths
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from retro_lab.artifacts.disk import write_file
from retro_lab.console import visible
from retro_lab.evaluation.inspected import FoundChunk, FoundToken, InspectedChunk, InspectedDocument, Token
from retro_lab.report.pages import TEMPLATES, render
from retro_lab.runs.records import ModelRecord

INSPECTION_FOLDER = "report/inspect"
LARGEST_DIFFERENCE = 0.5
"""Nats from which on a difference of losses has the strongest color, as in the paper."""
LEVELS = 5
"""Strengths of a color, for differences of losses as for LCP, whose strongest stands for this many tokens and more."""
BESIDE = 2
"""Neighbors shown beside a chunk, as in the paper; the others are folded up."""


def write_inspection(
    run_folder: Path, record: ModelRecord, split: str, database: str, documents: Sequence[InspectedDocument]
) -> list[Path]:
    """Write a page for each document into a run's folder.

    Args:
        run_folder: Of the run.
        record: Of its RETRO.
        split: That the documents are of.
        database: What they retrieve from, in words.
        documents: To show, in their order.

    Returns:
        The pages.

    Raises:
        ArtifactError: A page cannot be written.
    """
    names = [f"{split}_{document.number}.html" for document in documents]
    pages = []
    for name, document in zip(names, documents, strict=True):
        others = [(other, visible(found.name)) for other, found in zip(names, documents, strict=True)]
        page = inspection_page(document, record, split, database, [entry for entry in others if entry[0] != name])
        pages.append(write_file(run_folder / INSPECTION_FOLDER / name, page.encode("utf-8")))
    return pages


def inspection_page(
    document: InspectedDocument, record: ModelRecord, split: str, database: str, others: Sequence[tuple[str, str]]
) -> str:
    """Return the page of a document; `others` are the addresses and names of further pages."""
    script = (TEMPLATES / "inspection.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return render(
        "inspection.html.j2",
        title=visible(document.name),
        document=document,
        rows=[_row(number, chunk) for number, chunk in enumerate(document.chunks, 1)],
        split=split,
        model=f"{record.model} ({record.size}), {record.tokens:,} training tokens, k = {record.k}",
        database=visible(database),
        others=others,
        beside=BESIDE,
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


@dataclass(frozen=True)
class _Shown:
    """A token of the document: its text, classes for its colors, and its numbers."""

    text: str
    classes: str
    numbers: str


@dataclass(frozen=True)
class _Found:
    """A neighbor: its texts are pieces with the strength of their color."""

    chunk: int
    document: str
    distance: float
    neighbor: list[tuple[int, str]]
    continuation: list[tuple[int, str]]


@dataclass(frozen=True)
class _Row:
    """A chunk beside what it was predicted from."""

    number: int
    chunk: int
    tokens: list[_Shown]
    off: float
    on: float
    found: list[_Found]


def _row(number: int, chunk: InspectedChunk) -> _Row:
    off, on = chunk.nats
    # The marker has no text and no loss.
    tokens = [_token(token) for token in chunk.tokens if token.text or token.off is not None]
    return _Row(number, chunk.chunk, tokens, off, on, [_found(found) for found in chunk.neighbors])


def _token(token: Token) -> _Shown:
    prefix = f"p{min(token.prefix, LEVELS)}"
    if token.off is None or token.on is None:
        return _Shown(visible(token.text), f"unscored {prefix}", f"- - {token.prefix}")
    return _Shown(
        visible(token.text),
        f"{_difference_class(token.off - token.on)} {prefix}",
        f"{token.off:.3f} {token.on:.3f} {token.prefix}",
    )


def _difference_class(difference: float) -> str:
    """Return the class of a difference Off - On: `gain1` to `gain5`, `harm1` to `harm5`, or `even`."""
    level = round(min(abs(difference) / LARGEST_DIFFERENCE, 1) * LEVELS)
    return f"{'gain' if difference > 0 else 'harm'}{level}" if level else "even"


def _found(found: FoundChunk) -> _Found:
    return _Found(
        found.chunk, visible(found.document), found.distance, _pieces(found.neighbor), _pieces(found.continuation)
    )


def _pieces(tokens: Iterable[FoundToken]) -> list[tuple[int, str]]:
    """Join tokens of the same color."""
    return [
        (level, visible("".join(token.text for token in group)))
        for level, group in groupby(tokens, lambda token: min(token.run, LEVELS))
    ]
