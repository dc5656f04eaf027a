"""Each chunk's share in a score: what intervals and leakage are told from, in a Parquet file beside the model's record.

A chunk's nats are those of the tokens that stand in it, its marker left out, and its bytes are those of their text. The
file has the chunks in the order of the token store, and for each chunk r(C) (`retro_lab.retrieval.overlaps`) of what
was retrieved for it. Where the accuracy of a text is measured, it also has the tokens that were the most probable.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_lab.artifacts.disk import write_file

SCHEMA = pa.schema(
    {"document": pa.int64(), "nats": pa.float64(), "tokens": pa.int64(), "bytes": pa.int64(), "overlap": pa.float32()}
)
SCHEMA_WITH_HITS = SCHEMA.append(pa.field("hits", pa.int64()))


@dataclass(frozen=True, eq=False)
class DocumentScores:
    """What a model takes for each document of a text, or for a part of each; D documents."""

    nats: np.ndarray
    """float64 [D]: summed cross-entropy of the document's tokens."""
    tokens: np.ndarray
    """int64 [D]: tokens that were predicted."""
    bytes: np.ndarray
    """int64 [D]: UTF-8 bytes."""

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.nats)


@dataclass(frozen=True, eq=False)
class ChunkScores:
    """What a model takes for each chunk of a text, in the order of its token store; C chunks of D documents."""

    document: np.ndarray
    """int64 [C]: the chunk's document, from 0 to D - 1, never falling."""
    nats: np.ndarray
    """float64 [C]: summed cross-entropy of the chunk's tokens."""
    tokens: np.ndarray
    """int64 [C]: tokens that were predicted."""
    bytes: np.ndarray
    """int64 [C]: UTF-8 bytes of the chunk's text; those of a document's chunks add up to the document's."""
    overlap: np.ndarray | None
    """float32 [C]: r(C), from 0 to 1; None where nothing was retrieved."""
    hits: np.ndarray | None = None
    """int64 [C]: predicted tokens that were the most probable of all; None where that was not counted."""

    @property
    def correct(self) -> np.ndarray | None:
        """Which documents a model would write as they are: each predicted token is the most probable; bool [D]."""
        if self.hits is None:
            return None
        missed = np.bincount(self.document, self.tokens - self.hits, minlength=self.documents)
        return (missed == 0) & (self.by_document().tokens > 0)

    @property
    def accuracy(self) -> float | None:
        """Share of the documents that are correct; None where that was not counted."""
        return None if self.correct is None else float(self.correct.mean())

    @property
    def documents(self) -> int:
        """Number of documents; each has at least one chunk."""
        return int(self.document[-1]) + 1 if len(self.document) else 0

    def bits_per_byte(self, chosen: np.ndarray | slice = slice(None)) -> float | None:
        """Return the bits per byte of some chunks, by default all of them; None if they have no bytes.

        Args:
            chosen: bool [C], True for the chunks to count.
        """
        size = int(self.bytes[chosen].sum())
        # fsum is exact: the order of the chunks does not matter.
        return math.fsum(self.nats[chosen]) / math.log(2) / size if size else None

    def by_document(self, chosen: np.ndarray | None = None) -> DocumentScores:
        """Add up the chunks of each document; one without any of them has zeros.

        Args:
            chosen: bool [C], True for the chunks to count; None counts all.
        """
        kept = np.ones(len(self.document), bool) if chosen is None else chosen

        def added(values: np.ndarray) -> np.ndarray:
            return np.bincount(self.document, np.where(kept, values, 0), minlength=self.documents)

        return DocumentScores(
            nats=added(self.nats),
            tokens=added(self.tokens).astype(np.int64),
            bytes=added(self.bytes).astype(np.int64),
        )


def write_chunk_scores(path: Path, scores: ChunkScores) -> None:
    """Write `scores` to `path` so that they are there whole or not at all.

    Raises:
        ArtifactError: The file cannot be written.
    """
    overlap = pa.nulls(len(scores.document), pa.float32()) if scores.overlap is None else pa.array(scores.overlap)
    columns = [pa.array(column) for column in (scores.document, scores.nats, scores.tokens, scores.bytes)]
    table = pa.table([*columns, overlap], schema=SCHEMA)
    if scores.hits is not None:
        table = table.append_column(SCHEMA_WITH_HITS.field("hits"), pa.array(scores.hits))
    content = io.BytesIO()
    pq.write_table(table, content)
    write_file(path, content.getvalue())


def load_chunk_scores(path: Path) -> ChunkScores:
    """Read the scores at `path`.

    Raises:
        ValueError: The file is not there, is cut short, or holds something else.
    """
    try:
        found = pq.read_schema(path).names
        if not _is_known(found):
            raise ValueError(f"an earlier release wrote it: it has the columns {', '.join(found)}")
        table = pq.read_table(path, schema=SCHEMA_WITH_HITS if "hits" in found else SCHEMA)
        document, nats, tokens, sizes = (table[name].to_numpy() for name in SCHEMA.names[:-1])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    if not np.isin(np.diff(document, prepend=-1), (0, 1)).all() or document[:1].any():
        raise ValueError("its documents are not numbered from 0 on")
    overlap = table["overlap"]
    if overlap.null_count not in (0, len(overlap)):
        raise ValueError("it has an overlap for some of its chunks only")
    hits = table["hits"].to_numpy() if "hits" in found else None
    return ChunkScores(document, nats, tokens, sizes, None if overlap.null_count else overlap.to_numpy(), hits)


def is_from_earlier_release(path: Path) -> bool:
    """Tell whether the file at `path` holds scores in a form that this release does not write any more."""
    try:
        return not _is_known(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):  # damaged: reading the scores says so
        return False


def _is_known(columns: Sequence[str]) -> bool:
    return columns in (SCHEMA.names, SCHEMA_WITH_HITS.names)
