"""Deduplication: of training documents that nearly copy each other, only the first is kept.

Held-out documents lose their near-copies in the training split to decontamination. If training documents kept theirs,
a model would learn to copy from neighbors that it does not have when it is scored.

documents ─► near_copies (which document copies which) ─► deduplication (documents, fewer of them)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retro_lab.artifacts.stage import Artifact
from retro_lab.corpus.filtering import Dropped, FilterStage
from retro_lab.corpus.near_copies import COPIES_NAME, NO_COPY, NearCopiesFacts


@dataclass(frozen=True)
class DeduplicationFacts:
    """Facts of a `deduplication` artifact, besides those of the documents it was made from."""

    deduplication: Dropped


class DeduplicationStage(FilterStage):
    """Documents as the `documents` stage writes them, without training documents that nearly copy others."""

    name = "deduplication"

    def __init__(self, documents: Artifact, near_copies: Artifact) -> None:
        """Drop the training documents that `near_copies` names."""
        super().__init__(documents)
        self.near_copies = near_copies

    def settings(self) -> Mapping[str, Any]:
        """Return nothing: the inputs decide the output."""
        return {}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the documents and their near-copies."""
        return {"documents": self.documents, "near_copies": self.near_copies}

    @cached_property
    def _copies(self) -> np.ndarray:
        return self.near_copies.array(COPIES_NAME) != NO_COPY

    def _drops(self, number: int, row: Mapping[str, Any]) -> bool:
        return bool(self._copies[number])

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Add up the counts; the first document is always kept."""
        kept, dropped = self._counts(facts)
        examples = self.near_copies.read_facts(NearCopiesFacts).examples
        found = Dropped(self.near_copies.settings["similarity"], dropped, examples)
        return {**self.documents.facts, "train": kept, **asdict(DeduplicationFacts(found))}
