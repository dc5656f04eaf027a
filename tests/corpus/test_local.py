import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_files import COMPRESS, read_all, texts, write_arrow, write_bytes, write_lines, write_parquet

from retro_lab.corpus.documents import rejection
from retro_lab.corpus.sources import local, local_rows
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.errors import CorpusError

LINUX_DOCS = Path(__file__).parents[3] / "shared" / "data" / "linuxdoc.jsonl.zst"


def read(path, **options):
    """Documents of one path without their split."""
    return [document for _, document in read_all(LocalSource(str(path), **options))]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_json_lines_are_documents_compressed_or_not(tmp_path, suffix):
    path = write_lines(tmp_path / f"a.jsonl{suffix}", {"text": "one"}, b"", {"text": "three \u00e9"})
    assert [(document.id, document.text) for document in read(path)] == [
        (f"a.jsonl{suffix}:1", "one"),
        (f"a.jsonl{suffix}:3", "three \u00e9"),
    ]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_text_file_is_one_document_with_its_bytes_as_they_are(tmp_path, suffix):
    path = write_bytes(tmp_path / f"a.txt{suffix}", "one\r\n\u00e9 two\n".encode())
    assert [(document.id, document.text) for document in read(path, text_field="content")] == [
        (f"a.txt{suffix}:1", "one\r\n\u00e9 two\n")
    ]


def test_parquet_arrow_and_a_json_array_give_the_same_documents(tmp_path):
    columns = {"text": ["one", None, "three"], "number": [7, 8, 9]}
    paths = [
        write_parquet(tmp_path / "a.parquet", **columns),
        write_arrow(tmp_path / "a.arrow", **columns),
        write_bytes(
            tmp_path / "a.json",
            json.dumps([{"text": t, "number": n} for t, n in zip(*columns.values(), strict=True)], indent=1).encode(),
        ),
    ]
    for path in paths:
        assert [(document.id, document.text) for document in read(path, id_field="number")] == [
            ("7", "one"),
            ("8", ""),
            ("9", "three"),
        ]
        assert [document.id for document in read(path)] == [f"{path.name}:{row}" for row in (1, 2, 3)]


def test_the_text_may_be_in_a_field_within_a_field(tmp_path):
    meta = [{"text": "one", "n": 1}, None, {"text": "three", "n": 3}]
    paths = [
        write_lines(tmp_path / "a.jsonl", *({"meta": value} for value in meta)),
        write_parquet(tmp_path / "a.parquet", meta=meta, text=[{"n": 0}] * 3),
        write_arrow(tmp_path / "a.arrow", meta=meta),
    ]
    for path in paths:
        assert texts(LocalSource(str(path), text_field="meta.text")) == ["one", "", "three"]


def test_text_that_looks_like_a_date_or_a_number_stays_text(tmp_path):
    values = ["2020-01-01", "1e5", "2020-01-01T00:00:00Z"]
    assert texts(LocalSource(str(write_lines(tmp_path / "a.jsonl", *({"text": v} for v in values))))) == values


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert read(write_bytes(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n'))[0].text == "one"
    assert read(write_bytes(tmp_path / "a.txt", b"\xef\xbb\xbfone"))[0].text == "one"


def test_records_may_have_different_fields(tmp_path):
    write_lines(tmp_path / "folder/a.jsonl", {"text": "one", "extra": [1]})
    write_lines(tmp_path / "folder/b.jsonl", {"id": "x", "text": "two", "extra": {"other": 1}})
    assert texts(LocalSource(str(tmp_path / "folder"))) == ["one", "two"]


def test_an_id_with_surrogates_becomes_writable(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", b'{"id": "sum\xe9", "text": "one"}')
    assert read(path, id_field="id")[0].id == "sum\\udce9"


def test_names_in_records_are_never_paths(tmp_path):
    path = write_lines(tmp_path / "folder/a.jsonl", {"id": "../../etc/passwd", "text": "one"})
    before = sorted(tmp_path.rglob("*"))
    assert read(path, id_field="id")[0].id == "../../etc/passwd"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a[1].parquet", "a*.parquet", "a?b.parquet", "a:b.parquet", "\u00e9 a.parquet"])
def test_file_names_may_hold_any_character(tmp_path, name):
    write_parquet(tmp_path / name, text=["one"])
    write_parquet(tmp_path / "other.parquet", text=["two"])
    assert [(document.id, document.text) for document in read(tmp_path / name)] == [(f"{name}:1", "one")]


def test_a_folder_is_read_at_any_depth_without_hidden_and_foreign_files(tmp_path):
    write_lines(tmp_path / "b.jsonl", {"text": "b"})
    write_lines(tmp_path / "a/z.jsonl.gz", {"text": "z"})
    write_lines(tmp_path / ".hidden/c.jsonl", {"text": "hidden"})
    write_bytes(tmp_path / "README.md", b"# about\n")
    assert [(document.id, document.text) for document in read(tmp_path)] == [
        ("a/z.jsonl.gz:1", "z"),
        ("b.jsonl:1", "b"),
    ]


def test_markdown_is_text_unless_it_is_about_data_beside_it(tmp_path):
    for name in ("a.md", "b/c.rst.gz", "d.txt"):
        write_bytes(tmp_path / name, name.encode())
    assert texts(LocalSource(str(tmp_path))) == ["a.md", "b/c.rst.gz", "d.txt"]
    (tmp_path / "d.txt").unlink()
    write_lines(tmp_path / "e.jsonl", {"text": "e"})
    assert texts(LocalSource(str(tmp_path))) == ["e"]
    assert texts(LocalSource(str(tmp_path), format="text")) == ["a.md", "b/c.rst.gz"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_single_text_file_is_cut_before_paragraphs(tmp_path, suffix):
    paragraphs = [f"paragraph {number} {'word ' * (number % 300)}\r\n\r\n \n" for number in range(200)]
    path = write_bytes(tmp_path / f"book.txt{suffix}", "".join(paragraphs).encode())
    documents = read(path)
    assert [document.id for document in documents] == [f"{path.name}:{row + 1}" for row in range(len(documents))]
    assert "".join(document.text for document in documents) == "".join(paragraphs)
    assert all(document.text.startswith("paragraph ") for document in documents)
    assert all(2**13 <= len(document.text) < 2**13 + 2000 for document in documents[:-1])
    before = LocalSource(str(path)).identity()
    write_bytes(tmp_path / "other.txt", b"other")
    assert [document.text for document in read(tmp_path)] == ["".join(paragraphs), "other"]
    assert LocalSource(str(tmp_path)).identity()["train"][path.name] != before["train"][path.name]


@given(st.lists(st.sampled_from([b"a\n", b"\n", b"a\r\n", b"bc" * 4 + b"\n", b" \n", b"d"]), max_size=60))
def test_cutting_loses_nothing_and_reads_a_bounded_number_of_bytes(lines):
    content = b"".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_rows, "PASSAGE_BYTES", 10)
        patch.setattr(local_rows, "LONGEST_PASSAGE", 30)
        found = list(local_rows._passages(io.BytesIO(content), 1000))
    assert b"".join(found) == content
    longest = max(map(len, content.splitlines(keepends=True)), default=0)
    assert all(10 <= len(passage) < 30 + longest for passage in found[:-1])
    assert all(passage.endswith(b"\n") for passage in found[:-1])


def test_a_glob_takes_what_it_matches_whatever_the_suffix_if_the_format_is_set(tmp_path):
    write_bytes(tmp_path / "docs/a.md", b"one")
    write_bytes(tmp_path / "docs/deep/b.md", b"two")
    documents = read(tmp_path / "docs/**/*.md", format="text")
    assert [(document.id, document.text) for document in documents] == [("a.md:1", "one"), ("deep/b.md:1", "two")]


def test_a_format_picks_its_files_out_of_a_mixed_folder(tmp_path):
    write_arrow(tmp_path / "data.arrow", text=["one"])
    write_lines(tmp_path / "state.json", {"fingerprint": 1})
    assert texts(LocalSource(str(tmp_path), format="arrow")) == ["one"]
    with pytest.raises(CorpusError, match=r"several formats \(arrow, json\); set corpus.format"):
        LocalSource(str(tmp_path)).parts()


def test_held_out_files_are_never_trained_on(tmp_path):
    for name in ("a", "b", "held"):
        write_lines(tmp_path / f"{name}.jsonl", {"text": name})
    held = {f"{split}_path": str(tmp_path / f"{name}.jsonl") for split, name in (("validation", "b"), ("test", "held"))}
    pairs = read_all(LocalSource(str(tmp_path), **held))
    assert [(split, document.text) for split, document in pairs] == [
        ("train", "a"),
        ("validation", "b"),
        ("test", "held"),
    ]
    for option, path in held.items():  # a path alone is divided between both splits
        pairs = read_all(LocalSource(str(tmp_path), **{option: path}))
        assert [split for split, _ in pairs[:2]] == ["train", "train"]
        assert pairs[2][0] != "train"
    held["test_path"] = str(tmp_path / "[b-z]*")
    with pytest.raises(CorpusError, match=r"b.jsonl is in both corpus.validation_path and corpus.test_path; name"):
        LocalSource(str(tmp_path), **held).parts()
    with pytest.raises(CorpusError, match=r"corpus\.validation_path hold out every file"):
        LocalSource(str(tmp_path), validation_path=str(tmp_path)).parts()


def test_a_share_of_the_documents_is_held_out_by_id(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *({"id": f"document {n}", "text": str(n)} for n in range(1000)))
    splits = {document.id: split for split, document in read_all(LocalSource(str(path), id_field="id"))}
    for held_out in ("validation", "test"):
        assert 20 < sum(split == held_out for split in splits.values()) < 80
    other = write_lines(tmp_path / "b.jsonl", *({"id": f"document {n}", "text": "x"} for n in reversed(range(1000))))
    assert {document.id: split for split, document in read_all(LocalSource(str(other), id_field="id"))} == splits


def test_copies_in_another_place_and_order_are_the_same_corpus(tmp_path):
    for place, order in (("one", (1, 2, 3)), ("other", (3, 1, 2))):
        for number in order:
            write_lines(tmp_path / place / f"{number}.jsonl", {"text": f"text {number}"})
    one, other = LocalSource(str(tmp_path / "one")), LocalSource(str(tmp_path / "other"))
    assert one.identity() == other.identity() == json.loads(json.dumps(one.identity()))
    assert str(tmp_path) not in str(one.identity())
    assert read_all(one) == read_all(one) == read_all(other)
    write_lines(tmp_path / "other/3.jsonl", {"text": "text 4"})
    assert LocalSource(str(tmp_path / "other")).identity() != one.identity()
    assert LocalSource(str(tmp_path / "one"), max_bytes=5).identity() != one.identity()


def test_files_are_grouped_into_parts_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "FILES_IN_PART", 4)
    monkeypatch.setattr(local, "BYTES_IN_PART", 100)
    for number in range(9):
        write_bytes(tmp_path / f"{number}.txt", (f"{number}" * (300 if number == 5 else 3)).encode())
    source = LocalSource(str(tmp_path))
    assert [[document.id[0] for _, document in source.read(part)] for part in range(source.parts())] == [
        list("0123"),
        list("4"),
        list("5"),
        list("678"),
    ]


def test_a_byte_budget_is_divided_by_file_size(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "FILES_IN_PART", 1)
    for name, count in (("large", 300), ("small", 100)):
        write_lines(tmp_path / f"{name}.jsonl", *({"text": "x" * 100} for _ in range(count)))
    source = LocalSource(str(tmp_path), max_bytes=8000)
    assert [len(list(source.read(part))) for part in range(2)] == [60, 20]
    assert len(read_all(LocalSource(str(tmp_path), max_bytes=1e9))) == 400


def test_a_byte_budget_leaves_the_validation_fraction_to_held_out_files(tmp_path):
    for name, count in (("train", 1000), ("held", 100)):
        write_lines(tmp_path / f"{name}.jsonl", *({"text": "x" * 100} for _ in range(count)))
    source = LocalSource(
        str(tmp_path / "train.jsonl"),
        str(tmp_path / "held.jsonl"),
        validation_fraction=0.15,
        test_fraction=0.05,
        max_bytes=10_000,
    )
    splits = [split for split, _ in read_all(source)]
    assert (splits.count("train"), len(splits)) == (80, 100)
    assert 0 < splits.count("test") < 20


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_large_file_is_read_a_little_at_a_time(tmp_path, name):
    count, text = 20_000, "x" * 1000
    if name.endswith("parquet"):
        path = write_parquet(tmp_path / name, text=[text + str(n) for n in range(count)])
    else:
        path = write_lines(tmp_path / name, *({"text": text + str(n)} for n in range(count)))
    source = LocalSource(str(path))
    assert next(source.read(0))[1].text == text + "0"  # imports what it needs before memory is measured
    tracemalloc.start()
    total = sum(len(document.text) for _, document in source.read(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > count * len(text)
    assert peak < total / 5


def test_real_documents():
    if not LINUX_DOCS.exists():
        pytest.skip(f"{LINUX_DOCS.name} is not here")
    documents = read(LINUX_DOCS, id_field="id", max_bytes=1e6)
    assert len({document.id for document in documents}) == len(documents) > 100
    assert not any(rejection(document.text) for document in documents)
