"""Compressed files are read to their last byte, and a missing end is noticed wherever it is."""

import gzip
import io
import random
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from written_files import COMPRESS, read_all, texts, write_lines

from retro_lab.corpus.sources.compression import DECOMPRESSORS, WholeStreams
from retro_lab.corpus.sources.hub import HubSource
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.errors import CorpusError

SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
forms = pytest.mark.parametrize("suffix", SUFFIXES)


def content(compressed, suffix):
    return io.BufferedReader(WholeStreams(io.BytesIO(compressed), DECOMPRESSORS[SUFFIXES[suffix]])).read()


@forms
@given(st.lists(st.binary(max_size=4000), min_size=1, max_size=3))
def test_all_streams_of_a_file_are_read(suffix, pieces):
    assert content(b"".join(COMPRESS[suffix](piece) for piece in pieces), suffix) == b"".join(pieces)


@forms
@given(st.data())
def test_a_missing_end_is_noticed_wherever_it_is(suffix, data):
    first = COMPRESS[suffix](random.Random(0).randbytes(data.draw(st.integers(0, 3000))))
    second = COMPRESS[suffix](b"the second stream")
    compressed = first + second
    cut = data.draw(st.integers(0, len(compressed) - 1).filter(lambda place: place != len(first)))
    with pytest.raises(EOFError):  # but between two streams, where nothing tells that there was another
        content(compressed[:cut], suffix)


@forms
def test_what_follows_a_stream_is_no_garbage(suffix):
    whole = COMPRESS[suffix](b"text")
    assert content(whole + bytes(8), suffix) == b"text"
    with pytest.raises(Exception, match=r"\w"):
        content(whole + b"garbage", suffix)


def test_a_dump_with_a_long_window_is_read():
    settings = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    compressed = compressor.compress(b"text") + compressor.flush()
    assert zstandard.get_frame_parameters(compressed).window_size == 2**31
    assert content(compressed, ".zst") == b"text"


def test_a_skippable_frame_is_skipped():
    skipped = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    assert content(skipped + zstandard.compress(b"text") + skipped, ".zst") == b"text"


@forms
@pytest.mark.parametrize("source", [LocalSource, HubSource])
def test_a_truncated_corpus_is_refused_by_name_and_a_concatenated_one_is_whole(tmp_path, suffix, source):
    words = random.Random(0).choices(["some", "words", "of", "text"], k=200_000)
    rows = [{"text": " ".join(words[n : n + 500])} for n in range(0, len(words), 500)]
    write_lines(tmp_path / f"train-0.jsonl{suffix}", {"text": "whole"})  # `datasets` looks into the first at once
    path = write_lines(tmp_path / f"train-1.jsonl{suffix}", *rows)
    path.write_bytes(path.read_bytes() * 2)
    assert len(texts(source(str(tmp_path)))) == 2 * len(rows) + 1
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        CorpusError, match=rf"train-1\.jsonl\{suffix} cannot be read .*; replace or repair it"
    ) as raised:
        read_all(source(str(tmp_path)))
    assert "\n" not in str(raised.value)


def test_an_empty_compressed_file_has_lost_its_end(tmp_path):
    write_lines(tmp_path / "a.jsonl.gz", {"text": "one"})
    (tmp_path / "b.jsonl.gz").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"b\.jsonl\.gz cannot be read .*its end is missing"):
        read_all(LocalSource(str(tmp_path)))


def test_little_that_holds_much_takes_little_memory():
    compressed = gzip.compress(bytes(2**27))
    stream = io.BufferedReader(WholeStreams(io.BytesIO(compressed), DECOMPRESSORS["gzip"]))
    tracemalloc.start()
    total = sum(len(piece) for piece in iter(lambda: stream.read(2**16), b""))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 2**27
    assert peak < 2**23
