"""Files of documents: Parquet, written and read a bounded number of bytes at a time."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from retro_lab.artifacts.stage import Artifact
from retro_lab.corpus.documents import Split

DOCUMENT_COLUMNS = pa.schema(
    [("id", pa.large_string()), ("source", pa.string()), ("text", pa.large_string()), ("bytes", pa.int64())]
)
ROW_GROUP_BYTES = 16 * 2**20
"""Text held in memory before it is written as one row group, which is what a reader decodes at once."""
ROWS = 64
"""Documents read at once."""


class DocumentsWriter:
    """Writes documents to one file in row groups of bounded size; closed on leaving its context."""

    def __init__(self, path: Path) -> None:
        """Create the file `path`."""
        self._writer = pq.ParquetWriter(path, DOCUMENT_COLUMNS, compression="zstd")
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a document, with a value for each of `DOCUMENT_COLUMNS`."""
        self._rows.append(row)
        self._bytes += row["bytes"]
        if self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=DOCUMENT_COLUMNS))
        self._rows, self._bytes = [], 0

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left and close the file."""
        self._flush()
        self._writer.close()


def read_documents(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read a few documents at a time, never those of two row groups at once: that bounds their bytes."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns)


def documents_name(split: Split) -> str:
    """Name of the file that holds the documents of a split, in each shard."""
    return f"{split}.parquet"


def document_files(documents: Artifact, split: Split) -> list[Path]:
    """Files of a split's documents in an artifact, in order, one for each shard."""
    return sorted(documents.folder.glob(f"*/{documents_name(split)}"))
