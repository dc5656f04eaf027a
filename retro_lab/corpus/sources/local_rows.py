"""Reading a file row by row.

`datasets` is not used: its JSON reader ends the file at one bad line, one byte that is not UTF-8 or one lone surrogate,
turns text that looks like a date into a date, and forces the first file's columns on all others; its text reader
decodes compressed files strictly, ignoring `encoding_errors`; its readers of Parquet and Arrow convert every column,
needed or not, and accept a truncated Arrow stream. This module uses what `datasets` is built on: decompression, the
standard JSON parser, one line at a time, and pyarrow.
"""

import codecs
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from retro_lab.corpus.documents import DANGLING, TOO_LONG, UNREADABLE
from retro_lab.corpus.sources.compression import DECOMPRESSORS, WholeStreams
from retro_lab.corpus.sources.local_files import MISSING, LocalFile, readable
from retro_lab.corpus.sources.records import PARQUET_ROWS, RecordFields, enumerate_rows
from retro_lab.errors import CorpusError

Row = Mapping[str, Any] | str
"""A record, or the reason why there is none."""
LONGEST_ARRAY = 256 * 2**20
"""Most bytes of a JSON array, which is read at once; lines have no such limit."""
PIECE = 2**20
PASSAGE_BYTES = 2**13
"""Bytes of a document in a divided text file after which it ends before the next paragraph, ..."""
LONGEST_PASSAGE = 2**16
"""... and after which it ends at the next line."""
ARROW_FILE_MAGIC = b"ARROW1"


def read_rows(file: LocalFile, longest: int, fields: RecordFields) -> Iterator[tuple[int, Row]]:
    """Yield the records of a file with their row, counted from 1 (for JSON lines, the line).

    Records of Parquet and Arrow have only what `fields` needs or, if that is missing, all names without values.

    A text file is one record, or several if it is `cut`, with the text in the field `text`. JSON and text records of
    more than `longest` bytes are skipped a piece at a time. Parquet and Arrow are decoded by whole pages or batches.

    Raises:
        CorpusError: The file is damaged, or is not what its format says.
    """
    if file.format == MISSING:
        return iter([(1, DANGLING)])
    if file.format == "json":
        return _json_rows(file, longest)
    return _text_rows(file, longest) if file.format == "text" else _table_rows(file, fields)


def _text_rows(file: LocalFile, longest: int) -> Iterator[tuple[int, Row]]:
    with _opened(file) as stream:
        contents = _passages(stream, longest) if file.cut else _whole(stream, longest)
        for number, content in enumerate_rows(contents, file.name):
            text = TOO_LONG if content is None else {"text": _decoded(content.removeprefix(codecs.BOM_UTF8))}
            yield number, text


def _whole(stream: BinaryIO, longest: int) -> Iterator[bytes | None]:
    """Yield the rest of the stream; None if it is more than `longest` bytes."""
    content = stream.read(longest + 1)
    yield content if len(content) <= longest else None


def _passages(stream: BinaryIO, longest: int) -> Iterator[bytes | None]:
    """Divide the rest of the stream before lines that follow a blank one or, if there are none, at the end of a line.

    None stands for a line of more than `longest` bytes.
    """
    lines: list[bytes] = []
    size, after_blank = 0, False
    for line in _lines(stream, longest):
        blank = line is not None and not line.strip()
        starts = size >= PASSAGE_BYTES and after_blank and not blank
        if lines and (line is None or starts or size >= LONGEST_PASSAGE):
            yield b"".join(lines)
            lines, size = [], 0
        if line is None:
            yield None
        else:
            lines.append(line)
            size += len(line)
        after_blank = blank
    if lines:
        yield b"".join(lines)


def _lines(stream: BinaryIO, longest: int) -> Iterator[bytes | None]:
    """Yield lines; None for one of more than `longest` bytes, which is read and dropped piece by piece."""
    while line := stream.readline(longest + 1):
        if len(line) <= longest:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(PIECE)
        yield None


def _peeked(stream: io.BufferedReader) -> Iterator[bytes]:
    """Yield the next bytes without consuming them."""
    yield stream.peek()


def _json_rows(file: LocalFile, longest: int) -> Iterator[tuple[int, Row]]:
    """Yield the objects of a file of JSON lines, or of one array; anything else is an unreadable record."""
    objects, first_problem = 0, None
    with _opened(file) as stream:
        _, beginning = next(enumerate_rows(_peeked(stream), file.name))
        if beginning.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            for _, content in enumerate_rows(_whole(stream, LONGEST_ARRAY), file.name):
                yield from _array_rows(content, file.name)
            return
        for number, line in enumerate_rows(_lines(stream, longest), file.name):
            if line is None:
                first_problem = first_problem or f"line {number} is {TOO_LONG}"
                yield number, TOO_LONG
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                value = json.loads(_decoded(line))
            except (ValueError, RecursionError) as error:
                value = error
            if isinstance(value, dict):
                objects += 1
                yield number, value
            else:
                first_problem = first_problem or f"line {number} is {_describe(value)}"
                yield number, UNREADABLE
    if first_problem and not objects:
        raise CorpusError(f"{file.name}: {first_problem}; write one JSON object a line, or one array of them.")


def _array_rows(content: bytes | None, name: str) -> Iterator[tuple[int, Row]]:
    if content is None:
        raise CorpusError(
            f"{name} is one JSON array longer than {LONGEST_ARRAY // 2**20} MiB, which would have to be read at once; "
            "write one JSON object a line instead, as by: jq -c '.[]'"
        )
    try:
        values = json.loads(_decoded(content.removeprefix(codecs.BOM_UTF8)))
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "its array"
        raise CorpusError(f"{name}: {where} is {_describe(error)}; write one JSON object a line.") from error
    for number, value in enumerate(values, start=1):
        yield number, value if isinstance(value, dict) else UNREADABLE


def _describe(value: Any) -> str:
    return f"not JSON ({value})" if isinstance(value, Exception) else f"a {type(value).__name__}, not an object"


def _table_rows(file: LocalFile, fields: RecordFields) -> Iterator[tuple[int, Row]]:
    read = _parquet_rows if file.format == "parquet" else _arrow_rows
    with readable(file.name), file.path.open("rb") as raw:
        yield from enumerate_rows(read(raw, fields), file.name)


def _parquet_rows(raw: BinaryIO, fields: RecordFields) -> Iterator[Row]:
    with pq.ParquetFile(raw) as table:
        record = _empty_record(table.schema_arrow)
        if not fields.are_in(record):
            yield from itertools.repeat(record, table.metadata.num_rows)
            return
        for batch in table.iter_batches(PARQUET_ROWS, columns=fields.names):
            yield from batch.to_pylist()


def _arrow_rows(raw: BinaryIO, fields: RecordFields) -> Iterator[Row]:
    """Yield the rows of an Arrow file or stream.

    Raises:
        EOFError: The stream lacks its end mark; pyarrow accepts the end of the file instead.
    """
    is_file = raw.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC
    open_table = pa.ipc.open_file if is_file else pa.ipc.open_stream
    raw.seek(0)
    schema = open_table(raw).schema
    record = _empty_record(schema)
    known = fields.are_in(record)
    tops = {name if name in record else name.partition(".")[0] for name in fields.names}
    columns = [place for place, column in enumerate(schema.names) if column in tops]
    raw.seek(0)
    reader = open_table(raw, options=pa.ipc.IpcReadOptions(included_fields=columns if known else [0]))
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
    while True:
        before = raw.tell()
        batch = next(batches, None)
        if batch is None:
            break
        yield from batch.to_pylist() if known else itertools.repeat(record, batch.num_rows)
    if not is_file and raw.tell() == before:
        raise EOFError("its end is missing")


def _empty_record(fields: Iterable[pa.Field]) -> dict[str, Any]:
    """Return all names without values, including those within structures."""
    return {field.name: _empty_record(field.type) if pa.types.is_struct(field.type) else None for field in fields}


def _decoded(content: bytes) -> str:
    """Decode UTF-8; other bytes become lone surrogates, for which the document is rejected later."""
    return content.decode("utf-8", "surrogateescape")


@contextmanager
def _opened(file: LocalFile) -> Iterator[io.BufferedReader]:
    """Open a file to read its decompressed bytes."""
    with readable(file.name), file.path.open("rb") as raw:
        yield io.BufferedReader(WholeStreams(raw, DECOMPRESSORS[file.compression])) if file.compression else raw
