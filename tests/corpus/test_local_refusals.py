"""What LocalSource says of files that it cannot read, and of records that nobody could."""

import re
from pathlib import Path

import pytest
from written_files import COMPRESS, read_all, write_bytes, write_lines

from retro_lab.corpus.documents import NO_TEXT_FIELD, TOO_LONG, rejection
from retro_lab.corpus.sources import local, local_rows
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.errors import ConfigurationError, CorpusError


def test_one_bad_line_is_one_rejected_document(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        b'{"text": broken}',
        {"text": "fine"},
        b'{"text": "sum\xe9"}',
        b'{"text": "half a pair \\ud800"}',
        b'{"text": "a\\u0000b"}',
        b"[" * 100_000,
        b"17",
        {"text": None},
        {"text": "also fine"},
        b'{"text": "cut o',
    )
    found = [
        (document.id, document.problem or rejection(document.text)) for _, document in read_all(LocalSource(str(path)))
    ]
    reasons = [
        "unreadable record",
        None,
        "not UTF-8",
        "not UTF-8",
        "NUL character",
        "unreadable record",
        "unreadable record",
        "empty",
        None,
        "unreadable record",
    ]
    assert found == [(f"a.jsonl:{line}", reason) for line, reason in enumerate(reasons, start=1)]


BAD_FILES = {
    "empty.jsonl": b"",
    "empty.txt": b"",
    "empty.parquet": b"",
    "list.jsonl": b'{"text": ["a"]}\n',
    "number.jsonl": b'{"text": "a"}\n{"text": 3}\n',
    "other.jsonl": b'{"txt": "a", "title": "b"}\n',
    "nothing.jsonl": b"{}\n",
    "prose.jsonl": b"This is\nno JSON.\n",
    "pretty.json": b'{\n "text": "a"\n}\n',
    "cut.json": b'[{"text": "a"},\n {"text": ',
    "strings.jsonl": b'"a"\n"b"\n',
    "prose.parquet": b"This is no Parquet.",
    "prose.arrow": b"This is no Arrow.",
    "prose.jsonl.zst": b"This is no Zstandard.",
    "table.csv": b"text\na\n",
    "squeezed.parquet.gz": b"PAR1",
    "ids.jsonl": b'{"text": "a", "id": {"a": 1}}\n',
}


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("nowhere.jsonl", {}, "corpus.path=.*nowhere.jsonl does not exist"),
        ("none/*.jsonl", {}, "No file matches corpus.path"),
        ("folder", {}, "holds no .*jsonl.* file"),
        ("empty.jsonl", {}, "contains only empty files"),
        ("empty.txt", {}, "contains only empty files"),
        ("empty.parquet", {}, "contains only empty files"),
        ("list.jsonl", {}, "list.jsonl:1: the field 'text' holds a value of type list"),
        ("number.jsonl", {}, "number.jsonl:2: the field 'text' holds a value of type int"),
        ("other.jsonl", {}, "other.jsonl:1 has no field 'text' but txt, title; did you mean 'txt'"),
        ("other.jsonl", {"text_field": "titles"}, "did you mean 'title'"),
        (
            "other.jsonl",
            {"text_field": "txt", "id_field": "uuid"},
            "no field 'uuid' .*; set corpus.id_field",
        ),
        ("nothing.jsonl", {}, "no field 'text' but no field at all"),
        ("ids.jsonl", {"id_field": "id"}, "the field 'id' holds a value of type dict"),
        ("prose.jsonl", {}, "prose.jsonl: line 1 is not JSON"),
        ("pretty.json", {}, "line 1 is not JSON"),
        ("cut.json", {}, "cut.json: line 2 is not JSON"),
        ("strings.jsonl", {}, "line 1 is a str, not an object"),
        ("prose.parquet", {}, "prose.parquet cannot be read"),
        ("prose.arrow", {}, "prose.arrow cannot be read"),
        ("prose.jsonl.zst", {}, "prose.jsonl.zst cannot be read"),
        ("cut.jsonl.gz", {}, "cut.jsonl.gz cannot be read after row"),
        ("table.csv", {}, "table.csv does not tell its format; set corpus.format"),
        ("squeezed.parquet.gz", {}, "decompress it"),
        ("prose.jsonl", {"format": "jsnl"}, "corpus.format=jsnl is not known; did you mean 'jsonl'"),
        ("prose.jsonl", {"validation_path": "gone"}, "corpus.validation_path=gone does not exist"),
        ("", {}, "corpus.path is empty"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_sentence(tmp_path, monkeypatch, path, options, message):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for name, content in BAD_FILES.items():
        Path(name).write_bytes(content)
    Path("cut.jsonl.gz").write_bytes(COMPRESS[".gz"](b'{"text": "a"}\n' * 10_000)[:-20])
    with pytest.raises(CorpusError, match=message) as raised:
        read_all(LocalSource(path, **options))
    assert "\n" not in str(raised.value)
    assert str(tmp_path) not in re.sub(r"\(.*\)", "", str(raised.value))


def test_text_files_have_no_id_field(tmp_path):
    with pytest.raises(ConfigurationError, match=r"corpus.id_field=id"):
        LocalSource(str(write_bytes(tmp_path / "a.txt", b"one")), id_field="id").parts()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("first", [True, False])
def test_a_line_of_any_length_takes_no_more_memory_than_a_document_may(tmp_path, monkeypatch, suffix, first):
    monkeypatch.setattr(local_rows, "PIECE", 64)
    short, long = b'{"text": "short"}\n', b'{"text": "' + b"long " * 100 + b'"}\n'
    content = long + short if first else short + long.rstrip(b"\n")
    path = write_bytes(tmp_path / f"a.jsonl{suffix}", content)
    found = [
        (document.text, document.problem) for _, document in read_all(LocalSource(str(path), max_document_bytes=25))
    ]
    assert sorted(found) == [("", TOO_LONG), ("short", None)]


def test_a_text_file_longer_than_a_record_is_skipped(tmp_path):
    write_bytes(tmp_path / "short.txt", b"1234567890" * 4)
    write_bytes(tmp_path / "long.txt", b"1234567890" * 4 + b"1")
    found = {
        document.id: document.problem for _, document in read_all(LocalSource(str(tmp_path), max_document_bytes=10))
    }
    assert found == {"long.txt:1": TOO_LONG, "short.txt:1": None}


def test_an_array_too_long_to_be_read_at_once_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(local_rows, "LONGEST_ARRAY", 10)
    path = write_bytes(tmp_path / "a.json", b'[{"text": "abc"}]')
    with pytest.raises(CorpusError, match=r"a\.json is one JSON array longer than .*jq"):
        read_all(LocalSource(str(path)))


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("files_in_part", [1, 256])
def test_records_without_the_text_are_skipped_where_others_have_it(tmp_path, monkeypatch, where, files_in_part):
    monkeypatch.setattr(local, "FILES_IN_PART", files_in_part)
    for number in range(3):
        lines = [{"title": "no text"}] if number == where else [{"text": "one"}, {"meta": {"text": "x"}}]
        write_lines(tmp_path / f"{number}.jsonl", *lines)
    found = [(document.text, document.problem) for _, document in read_all(LocalSource(str(tmp_path)))]
    assert sorted(found) == [("", NO_TEXT_FIELD)] * 3 + [("one", None)] * 2


def test_a_field_that_many_records_lack_is_refused_before_all_are_read(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *[{"body": "a"}] * 1000, {"body": 1}, {"text": "late"})
    with pytest.raises(CorpusError, match=r"a\.jsonl:1 has no field 'text' but body"):
        read_all(LocalSource(str(path)))
    write_lines(path, *[{"body": "a"}] * 999, {"text": "late"})
    assert [document.text for _, document in read_all(LocalSource(str(path)))] == [""] * 999 + ["late"]
