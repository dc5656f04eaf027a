"""What the documents stage holds out of corpora without held-out documents of their own, however small they are."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_files import write_bytes, write_lines

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.documents import SPLITS, hashed_split, name_hash
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.parquet import document_files, read_documents
from retro_lab.corpus.sources import local
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.corpus.sources.mixture import MixtureSource
from retro_lab.errors import ConfigurationError, CorpusError


def documents_of(tmp_path, source):
    """Return the rows of each split's documents."""
    documents = ArtifactStore(tmp_path / "artifacts").build(DocumentsStage(source))
    return {
        split: [
            row
            for path in document_files(documents, split)
            for batch in read_documents(path)
            for row in batch.to_pylist()
        ]
        for split in SPLITS
    }


def splits_of(tmp_path, source):
    """Return the ids of the documents of each split, in the order of `SPLITS`."""
    return tuple([row["id"] for row in rows] for rows in documents_of(tmp_path, source).values())


NAMES = st.text(st.characters(codec="utf-8"), max_size=4)


@settings(max_examples=25)
@given(st.sets(NAMES, min_size=3, max_size=40), st.floats(1e-6, 0.2), st.floats(1e-6, 0.2))
def test_of_three_documents_no_split_is_empty_and_the_smallest_hashes_are_held_out(
    tmp_path_factory, names, validation, test
):
    tmp_path = tmp_path_factory.mktemp("splits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "FILES_IN_PART", 1)
        for number, name in enumerate(sorted(names)):
            write_lines(tmp_path / "corpus" / f"{number % 3}" / f"{number}.jsonl", {"text": "a", "id": name})
        source = LocalSource(
            str(tmp_path / "corpus"), id_field="id", validation_fraction=validation, test_fraction=test
        )
        ordered = sorted(names, key=name_hash)
        count = {split: [hashed_split(name, validation, test) for name in names].count(split) for split in SPLITS}
        if not count["train"]:
            return
        found = splits_of(tmp_path, source)
    held = max(len(names) - count["train"], 2)
    tested = min(max(count["test"], 1), held - 1)
    assert [*map(set, found)] == [{*ordered[held:]}, {*ordered[tested:held]}, {*ordered[:tested]}]


@settings(max_examples=15)
@given(st.sets(NAMES, min_size=2, max_size=8), st.sampled_from(["validation_path", "test_path"]))
def test_held_out_documents_that_are_named_together_are_divided_and_never_all_on_one_side(
    tmp_path_factory, names, option
):
    tmp_path = tmp_path_factory.mktemp("halves")
    train = write_lines(tmp_path / "train.jsonl", *({"text": "a", "id": name} for name in sorted(names)))
    held = write_lines(tmp_path / "held.jsonl", *({"text": "b", "id": name} for name in sorted(names)))
    found = documents_of(tmp_path, LocalSource(str(train), id_field="id", **{option: str(held)}))
    assert [row["text"] for row in found["train"]] == ["a"] * len(names)  # although they have the ids of others
    ordered = sorted(names, key=name_hash)
    tested = min(max(sum(name_hash(name) < 2**63 for name in names), 1), len(names) - 1)
    assert {row["id"] for row in found["test"]} == {*ordered[:tested]}
    assert {row["id"] for row in found["validation"]} == {*ordered[tested:]}


def test_documents_that_cannot_be_used_are_not_held_out_for_others(tmp_path):
    lines = [{"text": "" if number < 30 else "text", "id": str(number)} for number in range(33)]
    few = {"validation_fraction": 1e-9, "test_fraction": 1e-9}
    found = splits_of(tmp_path, LocalSource(str(write_lines(tmp_path / "a.jsonl", *lines)), id_field="id", **few))
    assert [*map(len, found)] == [1, 1, 1]
    assert {identifier for split in found for identifier in split} == {"30", "31", "32"}


def test_a_book_is_split_and_so_is_a_mixture_of_few_documents(tmp_path):
    book = LocalSource(str(write_bytes(tmp_path / "book.txt", b"A paragraph of words.\n\n" * 2000)))
    train, validation, test = splits_of(tmp_path, book)
    assert len(train) >= 3
    assert validation
    assert test
    sources = {
        name: LocalSource(str(write_lines(tmp_path / f"{name}.jsonl", {"text": name})))
        for name in ("one", "two", "six")
    }
    weights = dict.fromkeys(sources, 1)
    mixture = MixtureSource(sources, weights, max_bytes=100, validation_fraction=1e-9, test_fraction=1e-9)
    assert [*map(len, splits_of(tmp_path, mixture))] == [1, 1, 1]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([{"text": "one"}], {}, r"is one document \(none skipped\).*give more documents, or .*corpus.validation_path"),
        ([{"text": "one"}, {"text": ""}], {}, r"is one document \(1 empty\)"),
        (
            [{"text": "one"}] * 2,
            {},
            r"is two documents \(none skipped\), and .* need one each; give more",
        ),
        ([{"text": "one"}] * 9, {"validation_fraction": 0}, "validation_fraction=0 holds out none of the 9 documents"),
        (
            [{"text": "one"}] * 9,
            {"test_fraction": 0},
            "test_fraction=0 .* 9 documents; raise it, or",
        ),
        (
            [{"text": "one", "id": 7}] * 9,
            {"id_field": "id"},
            "All 9 documents have the id '7', .*; set corpus.id_field to a field that differs",
        ),
        (
            [{"text": "one", "id": 7}] * 9,
            {"id_field": "id", "validation_fraction": 1 - 1e-9, "test_fraction": 1e-10},
            "All 9 documents have the id '7'",
        ),
        (
            [{"text": "one", "id": n % 2} for n in range(9)],
            {"id_field": "id"},
            "All 9 documents have the id '0' or '1'",
        ),
        (
            [{"text": "one"}] * 3,
            {"validation_fraction": 1 - 1e-9, "test_fraction": 1e-10},
            "=1 and corpus.test_fraction=1e-10 hold out all 3 documents; lower them",
        ),
        ([{"text": " "}], {}, r"no document to train on \(1 empty\)"),
        ([{"text": "one"}], {"validation_path": "empty.jsonl"}, r"names as held out can be used \(1 empty\)"),
        (
            [{"text": "one"}],
            {"validation_path": "held.jsonl", "test_path": "empty.jsonl"},
            r"names for its test split can be used \(1 empty\); name others",
        ),
        (
            [{"text": "one"}],
            {"test_path": "held.jsonl"},
            r"split is empty: corpus names one document to hold out .*; add others, or name .* by corpus.\w+_path",
        ),
    ],
)
def test_what_cannot_be_split_is_told_with_what_to_do(tmp_path, monkeypatch, lines, options, message):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "empty.jsonl", {"text": ""})
    write_lines(tmp_path / "held.jsonl", {"text": "held out"})
    path = write_lines(tmp_path / "a.jsonl", *lines)
    with pytest.raises(CorpusError, match=message) as raised:
        splits_of(tmp_path, LocalSource(str(path), **options))
    assert "\n" not in str(raised.value)


KINDS = {
    "group_pattern": "^[a-c]*",
    "group_field": "by.author",
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(
    names=st.sets(st.text("abcx", min_size=1, max_size=4), min_size=3, max_size=40),
    validation=st.floats(0.01, 0.4),
    test=st.floats(0.01, 0.4),
)
def test_no_group_is_in_two_splits(tmp_path_factory, kind, names, validation, test):
    tmp_path = tmp_path_factory.mktemp("groups")
    group = {name: re.match("[a-c]*", name)[0] or name for name in names}
    lines = [{"text": "a", "id": name, "by": {"author": group[name]}} for name in names]
    path = str(write_lines(tmp_path / "a.jsonl", *sorted(lines, key=lambda line: line["id"])))
    fractions = {"validation_fraction": validation, "test_fraction": test}
    source = LocalSource(path, id_field="id", **{kind: KINDS[kind]}, **fractions)
    by_hash = {group: hashed_split(group, validation, test) for group in group.values()}
    if len(by_hash) < 3 or "train" not in by_hash.values() or group == {name: name for name in names}:
        return
    found = splits_of(tmp_path, source)
    assert sorted(name for split in found for name in split) == sorted(names)
    groups = [{group[name] for name in split} for split in found]
    assert all(groups)
    assert not any(one & other for one, other in itertools.combinations(groups, 2))
    if {*by_hash.values()} == {*SPLITS}:  # nothing had to be filled
        assert all(by_hash[name] == split for split, those in zip(SPLITS, groups, strict=True) for name in those)


def test_a_part_of_a_mixture_has_its_own_groups_or_the_mixtures(tmp_path):
    names = ["a/1", "a/2", "b/1", "b/2"]
    lines = [{"text": "text", "id": name, "author": name[-1]} for name in names]
    path = str(write_lines(tmp_path / "a.jsonl", *lines))
    sources = {
        "plain": LocalSource(path, id_field="id"),
        "own": LocalSource(path, id_field="id", group_pattern="[0-9]$"),
        "field": LocalSource(path, id_field="id", group_field="author"),
    }
    mixture = MixtureSource(sources, dict.fromkeys(sources, 1), max_bytes=1e6, group_pattern="^.*/")
    found = [document.group for part in range(mixture.parts()) for _, document in mixture.read(part)]
    assert found == ["1", "2", "1", "2", "1", "2", "1", "2", "a/", "a/", "b/", "b/"]  # sources by name
    without = MixtureSource(sources, dict.fromkeys(sources, 1), max_bytes=1e6)
    for inner, pattern in ((mixture, "."), (without, "^.*/")):
        outer = MixtureSource({"inner": inner}, {"inner": 1}, max_bytes=1e6, group_pattern=pattern)
        assert [document.group for part in range(3) for _, document in outer.read(part)] == found


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"group_pattern": "(a"},
            ConfigurationError,
            r"group_pattern=\(a is not a regular expression \(.*\); correct it",
        ),
        ({"group_pattern": "a", "group_field": "id"}, ConfigurationError, "both name groups; set one of them to null"),
        (
            {"group_pattern": "^none"},
            CorpusError,
            r"=\^none does not match a part of any document's id, such as 'x/\d'; change",
        ),
        (
            {"group_pattern": "x/"},
            CorpusError,
            "All 9 documents are of the group 'x/', and a group is in one split; name",
        ),
        ({"group_field": "kind"}, CorpusError, "All 9 documents are of the group 'k', and .* corpus.group_field"),
        ({"group_field": "where"}, CorpusError, "a.jsonl:1 has no field 'where' .*; set corpus.group_field to one"),
        ({"group_field": "list"}, CorpusError, "a.jsonl:1: the field 'list' holds .* list; set corpus.group_field to"),
    ],
)
def test_what_cannot_be_grouped_is_told_with_what_to_do(tmp_path, options, error, message):
    lines = [{"text": "one", "id": f"x/{number}", "kind": "k", "list": [1]} for number in range(9)]
    path = str(write_lines(tmp_path / "a.jsonl", *lines))
    with pytest.raises(error, match=message) as raised:
        splits_of(tmp_path, LocalSource(path, id_field="id", **options))
    assert "\n" not in str(raised.value)
