"""What the server asks of a run: neighbors of texts, and continuations of prompts.

The server knows nothing else of a model or a database, so that any object with these two methods can be served.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from retro_lab.generation.stretches import Stretch
from retro_lab.runs.search import Searched


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is served."""

    run: str
    """Name of the run."""
    model: str
    """Name of its model."""
    parameters: int
    k: int
    """Neighbors of each chunk that the model was trained with; 0 for a baseline."""
    chunk_length: int
    """Tokens of a chunk."""
    sequence_length: int
    """Tokens of a sequence; of a longer text the last ones are read."""
    vocabulary_size: int
    database: str | None
    """What is searched, in words; None if the run retrieves nothing."""
    corpus: str | None
    """Name of the corpus that the database is made of."""
    max_neighbors: int
    """Most neighbors that a text or a chunk can have."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How prompts are to be continued."""

    max_tokens: int
    """Most tokens to add to each."""
    temperature: float
    """0 takes the most likely token."""
    top_k: int | None
    """Draw from so many of the likeliest tokens; None from all."""
    top_p: float | None
    """Draw from the fewest likeliest tokens whose probabilities add up to this; None from all."""
    seed: int
    stop: list[str]
    """Texts at which a continuation ends; they are not part of it."""
    k: int
    """Neighbors of each chunk; 0 turns retrieval off."""
    retrieve_every: int | None
    """Tokens from one search to the next; None searches at the end of each chunk."""
    drafts: bool
    """Whether a prompt that is sent alone is continued with drafts from its neighbors, which change no text."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A continuation."""

    text: str
    """What was added to the prompt."""
    tokens: int
    """How many tokens were added."""
    finish_reason: str
    """`end` if the document ended, `stop` for a text of `stop`, `length` for `max_tokens`."""
    stretches: list[Stretch]
    """Prompt and continuation together; a stretch is a chunk, unless `retrieve_every` is less."""


class Engine(Protocol):
    """A run that can be served; it is called by one thread at a time."""

    facts: Facts

    def search(self, texts: Sequence[str], k: int) -> list[Searched]:
        """Find the k nearest neighbors of each text, nearest first; the first k of more are the same."""

    def generate(self, prompts: Sequence[str], wanted: Wanted) -> list[Written]:
        """Continue each prompt."""
