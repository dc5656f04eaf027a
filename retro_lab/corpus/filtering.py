"""Documents as the `documents` stage writes them, without some of those to train on."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.documents import SPLITS, Split
from retro_lab.corpus.parquet import DocumentsWriter, Piece, documents_name, pieces

MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Dropped:
    """The training documents that a stage dropped."""

    similarity: float
    """Jaccard similarity from which on documents are dropped."""
    dropped: dict[str, int]
    """Counts of `documents` and `bytes`; empty if there are none."""
    examples: list[str]


class FilterStage(Stage):
    """Documents without some training documents; a shard is one piece of a split, up to 64 MiB of text."""

    unit = "documents"

    def __init__(self, documents: Artifact) -> None:
        """Filter the training split of `documents`."""
        self.documents = documents

    @cached_property
    def _pieces(self) -> list[tuple[Split, Piece]]:
        return [(split, piece) for split in SPLITS for piece in pieces(self.documents, split)]

    def shard_sizes(self) -> Sequence[int]:
        """Return the documents in each piece, of all splits."""
        return [piece.documents for _, piece in self._pieces]

    @abstractmethod
    def _drops(self, number: int, row: Mapping[str, Any]) -> bool:
        """Return whether to drop a document, the training split's `number`-th."""

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write `train.parquet` without dropped documents, or copy the file of a held-out split."""
        split, piece = self._pieces[shard]
        number = sum(before.documents for other, before in self._pieces[:shard] if other == "train")
        kept, dropped = Counter[str](), Counter[str]()
        with DocumentsWriter(folder / documents_name(split), pq.read_schema(piece.path)) as writer:
            for batch in piece.read():
                for row in batch.to_pylist():
                    counts = Counter(documents=1, bytes=row["bytes"])
                    if split == "train" and self._drops(number, row):
                        dropped += counts
                    else:
                        writer.add(row)
                        kept += counts
                    number += 1
                advance(batch.num_rows)
        return {"split": split, "kept": dict(kept), "dropped": dict(dropped)}

    def _counts(self, facts: Sequence[Mapping[str, Any]]) -> tuple[dict[str, int], dict[str, int]]:
        """Add up the counts of training documents that the shards kept and dropped."""
        train = [fact for fact in facts if fact["split"] == "train"]
        kept, dropped = (sum((Counter(fact[name]) for fact in train), Counter[str]()) for name in ("kept", "dropped"))
        return dict(kept), dict(dropped)
