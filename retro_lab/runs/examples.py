"""Chunks beside their neighbors, as text that can be shown: for the terminal, and kept beside a model for its page.

Texts, names and ids come from anywhere: in examples, control characters and characters that turn the text around are
written as escapes (`retro_lab.console.visible`).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    found = []
    for chunk in chunks:
        nearest = [
            (int(neighbor), float(distance))
            for neighbor, distance in zip(table.ids[chunk][:k], table.distances[chunk][:k], strict=True)
            if neighbor != NO_NEIGHBOR
        ]
        [passage] = passages(store, [chunk])
        neighbors = passages(source, [neighbor for neighbor, _ in nearest])
        found.append(
            Example(
                passage=Passage(**_visible(passage)),
                neighbors=tuple(
                    FoundPassage(**_visible(neighbor), distance=distance)
                    for neighbor, (_, distance) in zip(neighbors, nearest, strict=True)
                ),
            )
        )
    return tuple(found)


def passages(store: TokenStore, chunks: Sequence[int]) -> list[Passage]:
    """Read chunks of a text, each with what follows it in its document, as they are."""
    where = np.array(chunks, np.int64)
    own, at = np.unique(store.document_of(where), return_inverse=True)
    documents = store.document_ids(own)
    m = store.chunk_length
    found = []
    rows = zip(chunks, at, store.read(where, 2), store.real_tokens(where, 2), strict=True)
    for chunk, document, tokens, length in rows:
        pieces = store.tokenizer.pieces(tokens[:length])
        found.append(
            Passage(
                chunk=chunk,
                document=documents[document],
                text="".join(pieces[:m]),
                continuation="".join(pieces[m:]),
            )
        )
    return found


def _visible(passage: Passage) -> dict[str, Any]:
    return {name: visible(value) if isinstance(value, str) else value for name, value in vars(passage).items()}


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
