"""Layout of encoded documents in a token store: in shuffled order, each on a chunk boundary.

Shards are read one after the other and each document is written to its place, so memory holds about 180 bytes for each
document and one shard, never all tokens.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from retro_lab.corpus.documents import name_hash
from retro_lab.corpus.parquet import DOCUMENT_COLUMNS

ENCODED_NAME, TABLE_NAME = "tokens.bin", "documents.parquet"
"""Files of a shard: concatenated ids, and a table of the documents, which the finished store has too."""
TOKENS_NAME, LEFT_NAME = "tokens.npy", "tokens_left.npy"
START_NAME, LENGTH_NAME, BYTES_NAME = "document_start.npy", "document_length.npy", "document_bytes.npy"
GROUP_NAME = "document_group.npy"
SCORED_FROM_NAME, SCORED_BYTES_NAME = "scored_from.npy", "scored_bytes.npy"
"""Files of the store: ids, tokens left of its document from each chunk on, and tables of the documents. The last two
are there only where documents are scored in part."""
SCORED_TOKEN, SCORED_BYTES = "scored_token", "scored_bytes"
"""Columns of a shard's table where documents are scored in part: first scored token, and bytes of the scored text."""
BUCKET_DOCUMENTS = 2**18
"""Rows of the table of documents that are sorted at a time, ..."""
MAX_BUCKETS = 256
"""... but in no more buckets than this: each has an open file."""


class TokenLayout:
    """Where each document of some shards goes, for D documents, C chunks and chunk length m.

    The table of the documents in a shard has the columns id, source, group, bytes and tokens, and where they are scored
    in part `SCORED_TOKEN` and `SCORED_BYTES`.
    """

    def __init__(self, shards: Sequence[Path], chunk_length: int, seed: int) -> None:
        """Shuffle the documents of `shards` with `seed`."""
        self._shards = shards
        self._chunk_length = chunk_length
        tables = [pq.read_table(shard / TABLE_NAME, columns=["tokens", "bytes"]) for shard in shards]
        self._counts = [table.num_rows for table in tables]
        self.lengths = _column(tables, "tokens")
        """Tokens of each document in the order of the shards, [D]."""
        self.bytes = _column(tables, "bytes")
        """UTF-8 bytes of each document in the order of the shards, [D]."""
        self._scored = {
            name: _column([pq.read_table(shard / TABLE_NAME, columns=[column]) for shard in shards], column)
            for name, column in ((SCORED_FROM_NAME, SCORED_TOKEN), (SCORED_BYTES_NAME, SCORED_BYTES))
            if shards and column in pq.read_schema(shards[0] / TABLE_NAME).names
        }
        self._order = np.random.default_rng(seed).permutation(len(self.lengths))
        self._start = np.concatenate([[0], np.cumsum(-(-self.lengths[self._order] // chunk_length))])
        self._place = np.empty_like(self._order)
        self._place[self._order] = np.arange(len(self._order))

    @property
    def chunks(self) -> int:
        """Number of chunks, C."""
        return int(self._start[-1])

    def write(self, folder: Path, dtype: np.dtype, marker: int) -> None:
        """Write the files of a token store; `marker` fills up the last chunk of each document."""
        self._write_tokens(folder, dtype, marker)
        np.save(folder / START_NAME, self._start.astype(np.int64))
        np.save(folder / LENGTH_NAME, self.lengths[self._order].astype(np.int64))
        np.save(folder / BYTES_NAME, self.bytes[self._order].astype(np.int64))
        for name, values in self._scored.items():
            np.save(folder / name, values[self._order].astype(np.int64))
        np.save(folder / GROUP_NAME, self._groups())
        self._write_table(folder / TABLE_NAME)

    def _groups(self) -> np.ndarray:
        """Return the first document of each document's group in the store's order, int32 [D].

        Groups are compared by hashes of their names, of which only a few are in memory at once.
        """
        hashes = np.empty(len(self._place), np.uint64)
        first = 0
        for shard in self._shards:
            with pq.ParquetFile(shard / TABLE_NAME) as file:
                for batch in file.iter_batches(columns=["group"]):
                    places = self._place[first : first + batch.num_rows]
                    hashes[places] = np.fromiter(map(name_hash, batch["group"].to_pylist()), np.uint64, len(places))
                    first += batch.num_rows
        order = np.argsort(hashes, kind="stable").astype(np.int32)  # the first document of a group stays the first
        hashes = hashes[order]
        begins = np.append(True, hashes[1:] != hashes[:-1])[: len(order)]
        groups = np.empty_like(order)
        groups[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(order), dtype=np.int32), 0))]
        return groups

    def _write_tokens(self, folder: Path, dtype: np.dtype, marker: int) -> None:
        # With one chunk of padding at the end, every neighbor's continuation can be read without a bounds check.
        rows = self.chunks + 1
        padding = np.full(self._chunk_length, marker, dtype)
        # Pages of memory maps would count as this process's memory until they are on the disk.
        with (
            _NewArray(folder / TOKENS_NAME, dtype, rows, self._chunk_length) as tokens,
            _NewArray(folder / LEFT_NAME, np.dtype(np.uint32), rows, 1) as left,
        ):
            document = 0
            for shard, count in zip(self._shards, self._counts, strict=True):
                if not count:
                    continue  # an empty file cannot be memory-mapped
                encoded, first = np.asarray(np.memmap(shard / ENCODED_NAME, dtype, "r")), 0
                for length in self.lengths[document : document + count].tolist():
                    chunk = int(self._start[self._place[document]])
                    tokens.write(chunk, encoded[first : first + length], padding[: -length % len(padding)])
                    left.write(chunk, np.arange(length, 0, -self._chunk_length, dtype=np.uint32))
                    first += length
                    document += 1
            tokens.write(self.chunks, padding)
            left.write(self.chunks, np.zeros(1, np.uint32))

    def _write_table(self, path: Path) -> None:
        """Write id, source and group of each document in the store's order, by way of buckets of neighboring places."""
        total = len(self._place)
        size = max(BUCKET_DOCUMENTS, -(-total // MAX_BUCKETS))
        schema = pa.schema([DOCUMENT_COLUMNS.field(name) for name in ("id", "source", "group")])
        placed = schema.append(pa.field("place", pa.int64()))
        with TemporaryDirectory(dir=path.parent) as name, pq.ParquetWriter(path, schema, compression="zstd") as table:
            buckets = [Path(name) / str(bucket) for bucket in range(-(-total // size))]
            with ExitStack() as stack:
                writers = [stack.enter_context(pa.ipc.new_stream(str(bucket), placed)) for bucket in buckets]
                first = 0
                for shard, count in zip(self._shards, self._counts, strict=True):
                    rows = pq.read_table(shard / TABLE_NAME, columns=schema.names)
                    places = self._place[first : first + count]
                    rows = rows.append_column("place", pa.array(places, pa.int64()))
                    for bucket in np.unique(places // size):
                        writers[bucket].write_table(rows.filter(pa.array(places // size == bucket)))
                    first += count
            for bucket in buckets:
                with pa.ipc.open_stream(str(bucket)) as stream:
                    table.write_table(stream.read_all().sort_by("place").drop_columns("place"))


class _NewArray:
    """A flat `.npy` file whose rows are written in any order."""

    def __init__(self, path: Path, dtype: np.dtype, rows: int, row_length: int) -> None:
        self._file = path.open("wb")
        shape = (rows * row_length,)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._origin = self._file.tell()
        self._row_bytes = row_length * dtype.itemsize

    def write(self, row: int, *pieces: np.ndarray) -> None:
        """Write `pieces` one after the other, starting at row `row`."""
        self._file.seek(self._origin + row * self._row_bytes)
        for piece in pieces:
            self._file.write(piece.data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _column(tables: Sequence[pa.Table], name: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(table[name].to_numpy() for table in tables)])
