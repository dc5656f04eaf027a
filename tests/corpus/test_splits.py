"""What the documents stage holds out of corpora without held-out documents of their own, however small they are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_files import write_bytes, write_lines

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.documents import held_out
from retro_lab.corpus.parquet import document_files, read_documents
from retro_lab.corpus.sources import local
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.corpus.sources.mixture import MixtureSource
from retro_lab.corpus.stages import DocumentsStage
from retro_lab.errors import CorpusError


def splits_of(tmp_path, source):
    """Return the ids of the documents to train on and of those held out."""
    documents = ArtifactStore(tmp_path / "artifacts").build(DocumentsStage(source))
    return tuple(
        [
            identifier
            for path in document_files(documents, split)
            for batch in read_documents(path)
            for identifier in batch["id"].to_pylist()
        ]
        for split in ("train", "validation")
    )


@settings(max_examples=25)
@given(st.sets(st.text(st.characters(codec="utf-8"), max_size=4), min_size=2, max_size=40), st.floats(1e-6, 0.2))
def test_of_several_documents_at_least_one_is_held_out_and_never_for_another(tmp_path_factory, names, fraction):
    tmp_path = tmp_path_factory.mktemp("splits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "FILES_IN_PART", 1)
        for number, name in enumerate(sorted(names)):
            write_lines(tmp_path / "corpus" / f"{number % 3}" / f"{number}.jsonl", {"text": "a", "id": name})
        source = LocalSource(str(tmp_path / "corpus"), id_field="id", validation_fraction=fraction)
        if all(held_out(name, fraction) for name in names):
            return
        train, held = splits_of(tmp_path, source)
    assert {*train} | {*held} == names
    expected = {name for name in names if held_out(name, fraction)}
    if expected:
        assert {*held} == expected
    else:  # it is the first that a growing fraction holds out
        (only,) = held
        larger = next(power / 1e4 for power in range(1, 10_001) if any(held_out(name, power / 1e4) for name in names))
        assert held_out(only, larger)


def test_documents_that_cannot_be_used_are_not_held_out_for_others(tmp_path):
    lines = [{"text": "" if number < 30 else "text", "id": str(number)} for number in range(33)]
    source = LocalSource(str(write_lines(tmp_path / "a.jsonl", *lines)), id_field="id", validation_fraction=1e-9)
    train, held = splits_of(tmp_path, source)
    assert len(held) == 1
    assert {*train} | {*held} == {"30", "31", "32"}


def test_a_book_is_split_and_so_is_a_mixture_of_few_documents(tmp_path):
    book = LocalSource(str(write_bytes(tmp_path / "book.txt", b"A paragraph of words.\n\n" * 2000)))
    train, held = splits_of(tmp_path, book)
    assert len(train) >= 4
    assert held
    one = LocalSource(str(write_lines(tmp_path / "one.jsonl", {"text": "one"})))
    two = LocalSource(str(write_lines(tmp_path / "two.jsonl", {"text": "two"})))
    mixture = MixtureSource({"one": one, "two": two}, {"one": 1, "two": 1}, max_bytes=100, validation_fraction=1e-9)
    assert sorted(map(len, splits_of(tmp_path, mixture))) == [1, 1]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([{"text": "one"}], {}, r"is one document \(none skipped\).*give more documents, or .*corpus.validation_path"),
        ([{"text": "one"}, {"text": ""}], {}, r"is one document \(1 empty\)"),
        ([{"text": "one"}] * 9, {"validation_fraction": 0}, "validation_fraction=0 holds out none of the 9 documents"),
        (
            [{"text": "one", "id": 7}] * 9,
            {"id_field": "id"},
            "All 9 documents have the id '7', .*; set corpus.id_field to a field that differs",
        ),
        (
            [{"text": "one", "id": 7}] * 9,
            {"id_field": "id", "validation_fraction": 1 - 1e-9},
            "All 9 documents have the id '7'",
        ),
        ([{"text": "one"}] * 3, {"validation_fraction": 1 - 1e-9}, "holds out all 3 documents; lower it"),
        ([{"text": " "}], {}, r"no document to train on \(1 empty\)"),
        ([{"text": "one"}], {"validation_path": "held.jsonl"}, r"names as held out can be used \(1 empty\)"),
    ],
)
def test_what_cannot_be_split_is_told_with_what_to_do(tmp_path, monkeypatch, lines, options, message):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "held.jsonl", {"text": ""})
    path = write_lines(tmp_path / "a.jsonl", *lines)
    with pytest.raises(CorpusError, match=message) as raised:
        splits_of(tmp_path, LocalSource(str(path), **options))
    assert "\n" not in str(raised.value)
