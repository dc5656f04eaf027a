"""A text beside the neighbors that it was written from, for the terminal.

A row is a stretch of the text and what was retrieved just before it, as in the samples of Borgeaud et al. 2022 (Tables
6 to 21). Tokens that both have in common, several in a row (`retro_lab.retrieval.common_prefixes`), are within « and »,
so that they show without color, too.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

import numpy as np
from rich.table import Table
from rich.text import Text

from retro_lab.console import visible
from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.corpus.tokens import TokenStore
from retro_lab.generation.generator import Generated
from retro_lab.generation.retrieved import Found
from retro_lab.generation.stretches import ends_of, pieces_of
from retro_lab.retrieval.common_prefixes import common_prefixes
from retro_lab.retrieval.neighbors import NO_NEIGHBOR

SHORTEST = 3
"""Tokens in a row that count as common; fewer are so by chance."""
PROMPT, WRITTEN, COMMON, LABEL = "dim", "bold", "green", "cyan"


def beside_neighbors(written: Generated, tokenizer: DocumentTokenizer, store: TokenStore | None, border: int) -> Table:
    """Return a text beside its neighbors, a row for each stretch between two retrievals.

    Args:
        written: The text.
        tokenizer: Of the model.
        store: Of the database; None if the neighbors were given by hand.
        border: Tokens of what the model reads of a neighbor before its continuation.
    """
    table = Table("Text", "Neighbors of what comes before it", show_lines=True, expand=True)
    for column in table.columns:
        column.ratio, column.overflow = 1, "fold"
    tokens, pieces = np.concatenate([written.prompt, written.tokens]), pieces_of(written, tokenizer)
    begun, near = len(written.prompt), {chunk.stop: chunk.found for chunk in written.chunks}
    for first, end in pairwise(ends_of(written)):
        common, cell = np.zeros(end - first, bool), Text("(none)", PROMPT)
        if (found := near.get(first)) is not None:
            prefixes, runs = common_prefixes(
                tokens[:end], first, found.tokens, found.lengths, tokenizer.document_marker
            )
            common, cell = _covered(prefixes), _neighbors(found, runs, tokenizer, store, border)
        border_of_prompt = max(0, min(begun, end) - first)
        text = Text()
        for label, style, part in (
            ("prompt", PROMPT, slice(0, border_of_prompt)),
            ("written", WRITTEN, slice(border_of_prompt, None)),
        ):
            if any(pieces[first:end][part]):
                _add(text, label, _marked(pieces[first:end][part], common[part], style))
        table.add_row(text, cell)
    return table


def _neighbors(
    found: Found, runs: np.ndarray, tokenizer: DocumentTokenizer, store: TokenStore | None, border: int
) -> Text:
    """Return the neighbors of a chunk, nearest first, each with where it is from."""
    cell = Text()
    for rank, (chunk, distance, tokens, length, run) in enumerate(zip(*found, runs, strict=True), 1):
        if not length:
            continue
        source = "given by hand"
        if store is not None and chunk != NO_NEIGHBOR:
            [document] = store.document_ids(store.document_of(np.array([chunk])))
            source = f"{document}, chunk {chunk}, distance {distance:.3f}"
        pieces, common = tokenizer.pieces(tokens[:length]), _covered(run[:length])
        parts = ((f"{rank}. {source}", slice(0, border)), ("continued", slice(border, None)))
        for label, part in parts:
            if label != "continued" or any(pieces[part]):
                _add(cell, label, _marked(pieces[part], common[part], ""))
    return cell


def _add(cell: Text, label: str, text: Text) -> None:
    """Add a part of a cell under its label."""
    cell.append(f"{chr(10) if cell else ''}{visible(label)}:\n", LABEL).append_text(text)


def _covered(runs: np.ndarray) -> np.ndarray:
    """Return which tokens are in a run, bool [T], from how many tokens the longest run that ends with each has."""
    covered = np.zeros(len(runs), bool)
    for place in np.flatnonzero(runs >= SHORTEST):
        covered[max(0, place + 1 - runs[place]) : place + 1] = True
    return covered


def _marked(pieces: Sequence[str], common: Iterable[bool], style: str) -> Text:
    """Join pieces of a text, and mark the common ones."""
    text = Text()
    for is_common, group in groupby(zip(pieces, common, strict=True), lambda pair: bool(pair[1])):
        part = visible("".join(piece for piece, _ in group))
        text.append(f"«{part}»" if is_common and part else part, f"{style} {COMMON}" if is_common else style)
    return text
