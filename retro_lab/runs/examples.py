"""Chunks beside their neighbors, as text that can be shown: for the terminal, and kept beside a model for its page.

Texts, names and ids come from anywhere: control characters and characters that turn the text around are written as
escapes (`retro_lab.console.visible`).
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from retro_lab.artifacts.manifest import write_json
from retro_lab.console import visible
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ArtifactError
from retro_lab.retrieval.neighbors import NO_NEIGHBOR, Neighbors

EXAMPLES_NAME = "examples.json"
SHOWN = 3
"""Chunks kept for a run's page."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A chunk and what follows it in its document."""

    chunk: int
    document: str
    text: str
    continuation: str


@dataclass(frozen=True, kw_only=True)
class FoundPassage(Passage):
    """A neighbor and its continuation."""

    distance: float


@dataclass(frozen=True, kw_only=True)
class Example:
    """A chunk of a text beside what it retrieves, nearest first."""

    passage: Passage
    neighbors: tuple[FoundPassage, ...]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Chunks of a text that a model was scored on, beside the neighbors that it was scored with."""

    text: str
    """What the text is, in words."""
    database: str
    """What was searched, in words."""
    examples: tuple[Example, ...]


def evenly_spaced(chunks: int, count: int) -> list[int]:
    """Return `count` numbers below `chunks`, or all if there are fewer: the middles of as many equal parts."""
    parts = min(count, chunks)
    return [(2 * part + 1) * chunks // (2 * parts) for part in range(parts)]


def examples(
    store: TokenStore, source: TokenStore, table: Neighbors, chunks: Iterable[int], k: int
) -> tuple[Example, ...]:
    """Read chunks of a text beside their k nearest neighbors.

    Args:
        store: Of the text.
        source: Whose chunks the neighbors are.
        table: The neighbors of every chunk of the text.
        chunks: Which chunks.
        k: Neighbors of each, of which some may be missing.
    """
    return tuple(
        Example(
            passage=_passage(store, chunk),
            neighbors=tuple(
                FoundPassage(**vars(_passage(source, int(neighbor))), distance=float(distance))
                for neighbor, distance in zip(table.ids[chunk][:k], table.distances[chunk][:k], strict=True)
                if neighbor != NO_NEIGHBOR
            ),
        )
        for chunk in chunks
    )


def _passage(store: TokenStore, chunk: int) -> Passage:
    where = np.array([chunk])
    [document] = store.document_ids(store.document_of(where))
    tokens, length = store.read(where, 2)[0], int(store.real_tokens(where, 2)[0])
    pieces, m = store.tokenizer.pieces(tokens[:length]), store.chunk_length
    return Passage(
        chunk=chunk,
        document=visible(document),
        text=visible("".join(pieces[:m])),
        continuation=visible("".join(pieces[m:])),
    )


def write_examples(folder: Path, found: Examples) -> None:
    """Write examples into a model's folder.

    Raises:
        ArtifactError: The file cannot be written.
    """
    write_json(folder / EXAMPLES_NAME, asdict(found))


def load_examples(folder: Path) -> Examples | None:
    """Read the examples in a model's folder; None if a release wrote it that kept none.

    Raises:
        ArtifactError: The file is damaged.
    """
    path = folder / EXAMPLES_NAME
    try:
        return TypeAdapter(Examples).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise ArtifactError(
            f"{path} does not hold chunks and their neighbors ({str(error).partition(chr(10))[0]}); delete it, and "
            "score the model again with task=evaluate."
        ) from error
