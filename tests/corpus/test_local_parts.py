"""No part of what a corpus path names is left out in silence: links, folders that cannot be read, missing ends."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from written_files import read_all, texts, write_arrow, write_bytes, write_lines, write_parquet

from retro_lab.corpus.documents import DANGLING
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.errors import CorpusError


def ids(path, **options):
    return [document.id for _, document in read_all(LocalSource(str(path), **options))]


@pytest.fixture
def linked(tmp_path):
    """A folder with a link to a folder elsewhere, one into itself, two back to it, and links to files."""
    write_lines(tmp_path / "elsewhere/deep/c.jsonl", {"text": "c"})
    folder = tmp_path / "folder"
    write_lines(folder / "real/a.jsonl", {"text": "a"})
    write_lines(folder / "b.jsonl", {"text": "b"})
    (folder / "0 elsewhere").symlink_to(tmp_path / "elsewhere")
    (folder / "0 real").symlink_to(folder / "real")
    (folder / "real/back").symlink_to(folder)
    (folder / "again").symlink_to(folder)
    (folder / "a copy.jsonl").symlink_to(folder / "real/a.jsonl")
    return folder


@pytest.mark.parametrize("pattern", ["", "**", "**/*.jsonl"])
def test_links_are_followed_and_each_file_is_read_once(linked, pattern):
    assert ids(linked / pattern) == ["0 elsewhere/deep/c.jsonl:1", "b.jsonl:1", "real/a.jsonl:1"]


def test_a_pattern_may_ask_for_links(linked):
    assert ids(linked / "0*/**/*.jsonl") == ["0 elsewhere/deep/c.jsonl:1", "0 real/a.jsonl:1"]
    assert ids(linked / "a*.jsonl") == ["a copy.jsonl:1"]


def test_a_file_with_two_names_and_no_link_is_two_files(tmp_path):
    os.link(write_lines(tmp_path / "a.jsonl", {"text": "a"}), tmp_path / "b.jsonl")
    assert ids(tmp_path) == ["a.jsonl:1", "b.jsonl:1"]


@pytest.mark.parametrize("pattern", ["", "*"])
def test_links_to_nothing_are_documents_that_cannot_be_used(tmp_path, pattern):
    write_lines(tmp_path / "a.jsonl", {"text": "a"})
    (tmp_path / "folder").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    source = LocalSource(str(tmp_path / pattern))
    found = [(document.id, document.problem) for _, document in read_all(source)]
    assert found == [("a.jsonl:1", None), ("folder:1", DANGLING), ("loop.jsonl:1", DANGLING)]
    before = source.identity()
    (tmp_path / "folder").unlink()
    assert LocalSource(str(tmp_path / pattern)).identity() != before
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"holds no|contains only empty"):
        LocalSource(str(tmp_path / pattern)).parts()


@pytest.mark.parametrize("pattern", ["", "**/*.jsonl", "*/*.jsonl"])
def test_a_folder_that_cannot_be_read_is_refused_by_name(linked, monkeypatch, pattern):
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "real":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CorpusError, match=r"folder/(0 )?real cannot be read \(Permission denied\); make it readable"):
        LocalSource(str(linked / pattern)).parts()


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet", "a.arrow", "a.jsonl.gz"])
@pytest.mark.parametrize("ask", [read_all, LocalSource.identity])
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, monkeypatch, name, ask):
    path = write_bytes(tmp_path / name, b"anything")
    source = LocalSource(str(path))
    assert source.parts() == 1

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CorpusError, match=rf"{name} cannot be read \(Permission denied\); make it readable"):
        ask(source)


@pytest.fixture
def table():
    """Text that takes several row groups or batches, and ends in zeros as the end of a stream has them."""
    texts = ["".join(map(chr, np.random.default_rng(n).integers(97, 123, 400))) for n in range(30)]
    return pa.table({"text": texts, "n": pa.array([0] * 30, pa.int64())})


def write_table(path, table):
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=10)
        return path
    new = pa.ipc.new_file if path.name.startswith("file") else pa.ipc.new_stream
    with new(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=10)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
def test_tables_are_read_whole_and_a_missing_end_is_noticed_wherever_it_is(tmp_path, table, name, capfd):
    path = write_table(tmp_path / name, table)
    assert texts(LocalSource(str(path))) == table["text"].to_pylist()
    whole = path.read_bytes()
    for cut in {*range(1, len(whole), len(whole) // 40), *range(len(whole) - 40, len(whole))}:
        path.write_bytes(whole[:cut])
        with pytest.raises(CorpusError, match=rf"{name} cannot be read .*; replace or repair it") as raised:
            read_all(LocalSource(str(path)))
        assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_stream_that_is_cut_between_two_messages_has_lost_its_end(tmp_path, table):
    path = tmp_path / "a.arrow"
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        ends = []
        for batch in table.to_batches(max_chunksize=10):
            stream.write_batch(batch)
            ends.append(file.tell())
    whole = path.read_bytes()
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(CorpusError, match=r"a\.arrow cannot be read after row \d0: its end is missing"):
            read_all(LocalSource(str(path)))


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_columns_that_are_not_asked_for_do_not_matter(tmp_path, monkeypatch, write):
    monkeypatch.setenv("HF_HOME", "/proc/nowhere")
    map_column = pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64()))
    path = write(tmp_path / f"a.{write.__name__[6:]}", other=map_column, text=["one", "two"])
    assert texts(LocalSource(str(path))) == ["one", "two"]
    with pytest.raises(CorpusError, match=r":1 has no field 'txt' but other, text; did you mean 'text'"):
        read_all(LocalSource(str(path), text_field="txt"))
