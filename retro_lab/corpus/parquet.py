"""Files of documents in Parquet, written and read a bounded number of bytes at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_lab.artifacts.stage import Artifact
from retro_lab.corpus.documents import Split

DOCUMENT_COLUMNS = pa.schema(
    [
        ("id", pa.large_string()),
        ("source", pa.string()),
        ("group", pa.large_string()),
        ("text", pa.large_string()),
        ("bytes", pa.int64()),
    ]
)
SCORED_FROM = pa.field("scored_from", pa.int64())
"""Column that follows those where documents may be scored in part: the character that scoring starts at."""
ROW_GROUP_BYTES = 16 * 2**20
"""Bytes of text in a row group, which is held in memory until it is written, and decoded at once by readers."""
ROW_GROUP_DOCUMENTS = 2**14
"""Most documents in a row group, for short ones, which take more memory than their text."""
ROWS = 64
"""Documents read at once."""
GROUPS_IN_PIECE = 4
"""Row groups in one piece of work, the most that an interrupted build repeats."""


class DocumentsWriter:
    """Writes documents to one file in row groups of bounded size; closed on leaving its context."""

    def __init__(self, path: Path, columns: pa.Schema = DOCUMENT_COLUMNS) -> None:
        """Create the file `path`; `columns` are `DOCUMENT_COLUMNS`, with or without `SCORED_FROM`."""
        self._columns = columns
        self._writer = pq.ParquetWriter(path, columns, compression="zstd")
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a document, with a value for each column."""
        self._rows.append(row)
        self._bytes += row["bytes"]
        if self._bytes >= ROW_GROUP_BYTES or len(self._rows) >= ROW_GROUP_DOCUMENTS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:  # the last document filled its group; an empty one would be an empty piece of work
            return
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._columns))
        self._rows, self._bytes = [], 0

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the last documents and close the file."""
        self._flush()
        self._writer.close()


@dataclass(frozen=True)
class Piece:
    """Some row groups of a file of documents: up to 64 MiB of text, however large the file is."""

    path: Path
    groups: range

    @cached_property
    def documents(self) -> int:
        """Number of documents."""
        metadata = pq.read_metadata(self.path)
        return sum(metadata.row_group(group).num_rows for group in self.groups)

    def read(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read a few documents at a time, always of one row group, which bounds their bytes."""
        with pq.ParquetFile(self.path) as file:
            for group in self.groups:
                yield from file.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns)


def pieces(documents: Artifact, split: Split) -> list[Piece]:
    """Return the pieces of a split's documents in order; a file without documents has none."""
    found = []
    for path in document_files(documents, split):
        metadata = pq.read_metadata(path)
        count = metadata.num_row_groups if metadata.num_rows else 0
        starts = range(0, count, GROUPS_IN_PIECE)
        found += [Piece(path, range(start, min(start + GROUPS_IN_PIECE, count))) for start in starts]
    return found


def read_documents(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read a few documents of a file at a time."""
    yield from Piece(path, range(pq.read_metadata(path).num_row_groups)).read(columns)


def by_bytes(documents: pa.RecordBatch, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Divide `documents` into groups with at most `max_bytes` of text, or with one text that is longer."""
    ends = np.cumsum(documents["bytes"].to_numpy())
    start = 0
    while start < documents.num_rows:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + max_bytes, side="right")))
        yield documents.slice(start, stop - start)
        start = stop


def documents_name(split: Split) -> str:
    """Return the name of the file with the documents of a split, in each shard."""
    return f"{split}.parquet"


def document_files(documents: Artifact, split: Split) -> list[Path]:
    """Return the files with a split's documents in an artifact, in the order of its shards."""
    paths = (documents.shard(shard) / documents_name(split) for shard in range(documents.shards))
    return [path for path in paths if path.is_file()]


def count_words(documents: Artifact, split: Split, line_ends: bool) -> int:
    """Count the words of a split's scored text: pieces between spaces and line ends.

    Args:
        documents: With texts.
        split: To count.
        line_ends: Whether the end of each line counts as one word more.
    """
    words = 0
    for path in document_files(documents, split):
        for batch in read_documents(path):
            starts = batch[SCORED_FROM.name].to_pylist() if SCORED_FROM.name in batch.schema.names else None
            for row, text in enumerate(batch["text"].to_pylist()):
                scored = text[starts[row] :] if starts else text
                words += len(scored.split()) + (scored.count("\n") if line_ends else 0)
    return words


def iterate_texts(documents: Artifact, split: Split, max_bytes: float) -> Iterator[str]:
    """Yield the texts of a split in order until they reach `max_bytes` of UTF-8."""
    for path in document_files(documents, split):
        for batch in read_documents(path, ["text", "bytes"]):
            for text, size in zip(batch["text"].to_pylist(), batch["bytes"].to_pylist(), strict=True):
                if max_bytes <= 0:
                    return
                max_bytes -= size
                yield text
