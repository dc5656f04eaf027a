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
    held_out,
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


@given(st.text(st.characters()), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_holds_out_all_that_a_smaller_one_does(name, one, other):
    small, large = sorted((one, other))
    assert held_out(name, small) <= held_out(name, large)
    assert not held_out(name, 0.0)


def test_held_out_documents_are_the_same_everywhere_and_forever():
    # Written down once: a change here would silently exchange training and validation documents.
    assert [number for number in range(100) if held_out(f"document {number}", 0.05)] == [40, 70]
    assert sum(held_out(f"document {number}", 0.05) for number in range(20_000)) == pytest.approx(1000, rel=0.1)


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
    "wrong", [{"validation_fraction": -0.1}, {"validation_fraction": 1.0}, {"max_bytes": 0.0}, {"max_bytes": -1.0}]
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
