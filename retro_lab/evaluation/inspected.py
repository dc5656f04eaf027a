"""A held-out document chunk by chunk, beside what each chunk was predicted from (Borgeaud et al. 2022, Tables 16-21).

A row of those tables is a chunk C_u, what was retrieved for the chunk before it, and for each token of C_u the loss
without and with neighbors and LCP (`retro_lab.retrieval.common_prefixes`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.common_prefixes import common_prefixes
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.neighbors import NO_NEIGHBOR
from retro_lab.retrieval.sequences import Retrieved


class Token(NamedTuple):
    """A token of the document: what it adds to the text, its losses in nats, and LCP."""

    text: str
    off: float | None
    """Without neighbors; None if it is not scored."""
    on: float | None
    """With neighbors."""
    prefix: int


class FoundToken(NamedTuple):
    """A token of a neighbor, and the longest run of tokens that ends there and somewhere in the chunk as well."""

    text: str
    run: int


@dataclass(frozen=True, kw_only=True)
class FoundChunk:
    """A neighbor, as the model reads it."""

    chunk: int
    document: str
    distance: float
    neighbor: tuple[FoundToken, ...]
    continuation: tuple[FoundToken, ...]


@dataclass(frozen=True, kw_only=True)
class InspectedChunk:
    """A chunk beside the neighbors of the chunk before it, nearest first; the first chunk of a document has none."""

    chunk: int
    tokens: tuple[Token, ...]
    neighbors: tuple[FoundChunk, ...]

    @property
    def nats(self) -> tuple[float, float]:
        """Summed losses without and with neighbors."""
        scored = [token for token in self.tokens if token.off is not None]
        return sum(token.off or 0.0 for token in scored), sum(token.on or 0.0 for token in scored)


@dataclass(frozen=True, kw_only=True)
class InspectedDocument:
    """A document of a text, or its first chunks if it is long."""

    number: int
    """Its place in the text."""
    name: str
    chunks: tuple[InspectedChunk, ...]
    total: int
    """Chunks of the whole document."""
    off: float
    """Bits per byte of the whole document without neighbors."""
    on: float
    """With neighbors."""


def inspected_document(
    store: TokenStore,
    retrieved: Retrieved,
    distances: np.ndarray,
    document: int,
    off: np.ndarray,
    on: np.ndarray,
    k: int,
    most: int,
) -> InspectedDocument:
    """Put together what is known of a document.

    Args:
        store: Of the text.
        retrieved: Neighbors of the text's chunks.
        distances: Of these neighbors, float [chunks, K].
        document: Its number in the text.
        off: Nats of each of its tokens without neighbors, [T]; NaN for those that are not scored.
        on: The same with k neighbors.
        k: Neighbors that the model reads for each chunk.
        most: Chunks of a longer document that are taken.
    """
    first, end = (int(chunk) for chunk in store.document_start[document : document + 2])
    m, kept = store.chunk_length, min(end - first, most)
    tokens = store.read(np.array([first]), kept)[0][: len(off)]
    pieces = store.tokenizer.pieces(tokens)
    chunks = []
    for number in range(kept):
        part = slice(number * m, min((number + 1) * m, len(tokens)))
        before = np.array([first + number - 1])
        found, lengths = retrieved.read(before, k) if number else (np.zeros((1, 0, 0), np.int64), np.zeros((1, 0)))
        prefixes, runs = common_prefixes(
            tokens[: part.stop], part.start, found[0], lengths[0], store.tokenizer.document_marker
        )
        chunks.append(
            InspectedChunk(
                chunk=first + number,
                tokens=tuple(map(Token, pieces[part], _known(off[part]), _known(on[part]), prefixes.tolist())),
                neighbors=_neighbors(retrieved, distances, before, found[0], lengths[0], runs),
            )
        )
    bits = np.log(2) * max(1, int(store.document_bytes[document]))
    return InspectedDocument(
        number=document,
        name=store.document_ids(np.array([document]))[0],
        chunks=tuple(chunks),
        total=end - first,
        off=float(np.nansum(off) / bits),
        on=float(np.nansum(on) / bits),
    )


def _known(nats: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in nats]


def _neighbors(
    retrieved: Retrieved,
    distances: np.ndarray,
    before: np.ndarray,
    found: np.ndarray,
    lengths: np.ndarray,
    runs: np.ndarray,
) -> tuple[FoundChunk, ...]:
    database, ids = retrieved.database, np.asarray(retrieved.ids[before][0])
    # Where a neighbor ends and its continuation begins in what is read of them.
    border = 0 if retrieved.values is Value.continuation else database.chunk_length
    chunks = []
    for rank, (row, length) in enumerate(zip(found, lengths.astype(int), strict=True)):
        if ids[rank] == NO_NEIGHBOR:
            continue
        pieces = database.tokenizer.pieces(row[:length])
        texts = tuple(map(FoundToken, pieces, runs[rank].tolist()))
        chunks.append(
            FoundChunk(
                chunk=int(ids[rank]),
                document=database.document_ids(database.document_of(ids[rank : rank + 1]))[0],
                distance=float(distances[before[0], rank]),
                neighbor=texts[:border],
                continuation=texts[border:],
            )
        )
    return tuple(chunks)
