import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_lab.corpus.documents import (
    MAX_DOCUMENT_BYTES,
    TOO_LONG,
    Document,
    byte_shares,
    hashed_split,
    rejection,
    take_bytes,
    text_bytes,
    valid_unicode,
)
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t\u2003", "empty"),
        ("a\0b", "NUL character"),
        ("sum\udce9", "not UTF-8"),
        ("a" * int(MAX_DOCUMENT_BYTES), None),
        ("\u00e9" * (int(MAX_DOCUMENT_BYTES) // 2 + 1), TOO_LONG),
        ("a", None),
        ("\u00e9 \U0001f600", None),
    ],
    ids=str.split("blank space NUL latin longest long letter emoji"),
)
def test_rejection_names_the_reason(text, reason):
    assert rejection(text) == reason


@given(st.binary())
def test_what_is_not_rejected_is_valid_utf8_with_something_in_it(content):
    text = content.decode("utf-8", "surrogateescape")
    if rejection(text) is None:
        assert text.encode("utf-8") == content
        assert text.strip()
        assert b"\0" not in content


@given(st.text())
def test_valid_text_is_rejected_only_when_empty_or_with_nul(text):
    assert (rejection(text) is None) == (bool(text.strip()) and "\0" not in text)


FRACTIONS = st.floats(0, 0.5, width=16)
"""Of 16 bits, so that sums are exact."""


@given(st.text(st.characters()), FRACTIONS, FRACTIONS, FRACTIONS)
def test_what_is_trained_on_depends_on_the_sum_of_the_fractions(name, validation, test, more):
    split = hashed_split(name, validation, test)
    assert (split == "train") == (hashed_split(name, validation + test, 0) == "train")
    assert (split == "test") == (hashed_split(name, 0, test) == "test")
    assert split != "train" or hashed_split(name, 0, 0) == "train"
    if split != "train":
        assert hashed_split(name, validation + more, test) == split
        assert hashed_split(name, validation, test + more) != "train"


def test_held_out_documents_are_the_same_everywhere_and_forever():
    # Written down once: a change here would silently exchange training, validation and test documents.
    splits = [hashed_split(f"document {number}", 0.03, 0.04) for number in range(100)]
    assert {number: split for number, split in enumerate(splits) if split != "train"} == {
        40: "validation",
        70: "test",
        81: "validation",
    }
    splits = [hashed_split(f"document {number}", 0.04, 0.06) for number in range(20_000)]
    assert splits.count("validation") == pytest.approx(800, rel=0.1)
    assert splits.count("test") == pytest.approx(1200, rel=0.1)


@given(st.lists(st.text(max_size=20)), st.floats(0, 200))
def test_take_bytes_takes_whole_documents_and_exceeds_by_at_most_the_last(words, limit):
    documents = [Document(str(number), "", word) for number, word in enumerate(words)]
    taken = list(take_bytes(documents, limit))
    assert taken == documents[: len(taken)]
    sizes = [text_bytes(document.text) for document in taken]
    assert not sizes or sum(sizes[:-1]) < limit
    assert len(taken) == len(documents) or sum(sizes) >= limit
    assert list(take_bytes(documents, None)) == documents


def test_take_bytes_reads_no_further_than_it_must():
    endless = (Document(str(number), "", "x" * 10) for number in itertools.count())
    assert len(list(take_bytes(endless, 95))) == 10


@given(st.lists(st.integers(0, 10**12), min_size=1), st.floats(1, 1e12))
def test_byte_shares_add_up(sizes, limit):
    assert sum(byte_shares(sizes, limit)) == pytest.approx(limit)
    assert byte_shares(sizes, None) == [None] * len(sizes)


@given(st.text(st.characters(exclude_categories=[])))
def test_names_become_valid_unicode(name):
    written = valid_unicode(name).encode("utf-8").decode("utf-8")
    if rejection(name) is None:
        assert written == name


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation_fraction": -0.1},
        {"validation_fraction": 1.0},
        {"test_fraction": float("nan")},
        {"test_fraction": 0.5, "validation_fraction": 0.5},
        {"max_bytes": 0.0},
        {"max_bytes": -1.0},
    ],
)
def test_impossible_limits_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        LocalSource("somewhere.jsonl", **wrong)


def test_importing_sources_loads_no_heavy_library():
    script = (
        "import sys; from retro_lab.corpus.sources import local, mixture, python_source;"
        "print({'datasets', 'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
