"""Small files in the formats that users have."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import zstandard

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def write_bytes(path, content):
    """Write bytes, compressed as the name's suffix says; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(content))
    return path


def write_lines(path, *records):
    """Write records as JSON lines; bytes go in as they are."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    return write_bytes(path, b"".join(line + b"\n" for line in lines))


def write_parquet(path, **columns):
    """Write columns as one Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def write_arrow(path, **columns):
    """Write columns as one Arrow stream, as `datasets` saves them."""
    table = pa.table(columns)
    with pyarrow.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    return path


def read_all(source):
    """Return (split, document) of all parts in order."""
    return [pair for part in range(source.parts()) for pair in source.read(part)]


def texts(source):
    """Return the texts of all documents in order."""
    return [document.text for _, document in read_all(source)]
