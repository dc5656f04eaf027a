"""A text that was written, cut where something was retrieved."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.corpus.tokens import TokenStore
from retro_lab.generation.generator import Generated
from retro_lab.runs.examples import FoundPassage
from retro_lab.runs.search import found_passages


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Part of a prompt and its continuation, up to a place where something was retrieved, beside that."""

    prompt: str
    """Its part of the prompt."""
    text: str
    """Its part of the continuation."""
    neighbors: list[FoundPassage]
    """Nearest first; empty after the last place."""


def stretches(written: Generated, tokenizer: DocumentTokenizer, store: TokenStore | None) -> list[Stretch]:
    """Cut a prompt and its continuation where something was retrieved.

    Args:
        written: The text.
        tokenizer: Of the model.
        store: Of the database; None if nothing was searched for. Neighbors that were given by hand are left out.
    """
    begun, pieces = len(written.prompt), pieces_of(written, tokenizer)
    near: dict[int, list[FoundPassage]] = {}
    if store is not None:
        near = {chunk.stop: found_passages(store, chunk.found.ids, chunk.found.distances) for chunk in written.chunks}
    return [
        Stretch(
            prompt="".join(pieces[first : min(end, begun)]),
            text="".join(pieces[max(first, begun) : end]),
            neighbors=near.get(end, []),
        )
        for first, end in pairwise(ends_of(written))
    ]


def pieces_of(written: Generated, tokenizer: DocumentTokenizer) -> list[str]:
    """Return what each token of a prompt and its continuation adds to the text, up to a stop string."""
    begun = len(written.prompt)
    pieces, left = tokenizer.pieces(np.concatenate([written.prompt, written.tokens])), len(written.text)
    for place in range(begun, len(pieces)):
        pieces[place] = pieces[place][:left]
        left -= len(pieces[place])
    return pieces


def ends_of(written: Generated) -> list[int]:
    """Return the places at which stretches of a text begin and end, from 0 to its tokens."""
    return sorted({0, *(chunk.stop for chunk in written.chunks), len(written.prompt) + len(written.tokens)})
