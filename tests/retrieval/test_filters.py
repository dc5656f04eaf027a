"""Filters of stored neighbors against the definition, neighbor by neighbor."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline import build_chunks, search
from test_overlaps import Leaking, text
from test_substrings import longest_run

from retro_lab.corpus.documents import Document
from retro_lab.retrieval.config import FilterConfig
from retro_lab.retrieval.filters import FilteredStage
from retro_lab.retrieval.neighbors import NO_NEIGHBOR
from retro_lab.retrieval.token_grams import GRAM, NO_GRAM, similarities, token_grams

MARKER = 99


class WithCopies(Leaking):
    """Some documents to train on are copies of each other."""

    def read(self, part):
        for split, document in super().read(part):
            yield split, document
            if split == "train" and document.id.endswith("2"):
                yield split, Document(f"{document.id} again", "random", f"{document.text} once more")


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("filters"), tiny_bert, WithCopies(), chunk_length=16)


def grams(tokens):
    """The set of 13-grams of a list of tokens."""
    if not tokens:
        return set()
    return {tuple(tokens[first : first + GRAM]) for first in range(max(1, len(tokens) - GRAM + 1))}


def jaccard(one, other):
    return len(one & other) / max(1, len(one | other))


def by_hand(store, database, ids, count, config):
    """The first neighbors of each chunk that the definition leaves."""
    names = [pq.read_table(one.documents_table)["group"].to_pylist() for one in (store, database)]
    rows = np.full((len(ids), count), NO_NEIGHBOR)
    for query, found in enumerate(ids):
        own, kept = text(store, query, 2), []
        group = names[0][int(store.document_of(np.array(query)))]
        for neighbor in found[found != NO_NEIGHBOR].tolist():
            theirs = text(database, neighbor, 2)
            if config.longest_overlap is not None and longest_run(own, theirs) >= config.longest_overlap:
                continue
            if config.jaccard is not None and jaccard(grams(own), grams(theirs)) >= config.jaccard:
                continue
            if config.other_documents and names[1][int(database.document_of(np.array(neighbor)))] == group:
                continue
            nearer = [jaccard(grams(text(database, one, 2)), grams(theirs)) for one in kept]
            if config.near_copies is not None and max(nearer, default=-1) >= config.near_copies:
                continue
            kept.append(neighbor)
        rows[query, : len(kept[:count])] = kept[:count]
    return rows


FILTERS = [
    {"longest_overlap": 4},
    {"longest_overlap": 16},
    {"jaccard": 0.5},
    {"near_copies": 0.3},
    {"longest_overlap": 8, "jaccard": 0.9, "near_copies": 0.8, "other_documents": True},
]


@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_what_a_filter_leaves(chunks, settings):
    store, database, config = chunks.stores["validation"], chunks.stores["train"], FilterConfig(**settings)
    neighbors = search(chunks, "validation", stored=40)
    count = 12
    stage = FilteredStage(store, database, neighbors, count, config)
    with stage.prepare():
        ids, distances = stage.choose(np.arange(store.chunks))
    np.testing.assert_array_equal(ids, by_hand(store, database, neighbors.ids, count, config))
    assert (ids[:, :1] != neighbors.ids[:, :1]).any() or "near_copies" in settings
    assert (ids[:, :count] != neighbors.ids[:, :count]).any()
    for row in range(store.chunks):
        places = {neighbor: far for neighbor, far in zip(neighbors.ids[row], neighbors.distances[row], strict=True)}
        expected = [places[neighbor] if neighbor != NO_NEIGHBOR else np.inf for neighbor in ids[row]]
        np.testing.assert_array_equal(distances[row], np.float32(expected))


def test_neighbors_of_the_same_document_in_another_corpus_are_dropped(chunks):
    """The copy of a held-out document that another corpus holds under the same id, as this test pretends."""
    store = chunks.stores["validation"]
    ids = np.tile(np.arange(store.chunks), (store.chunks, 1))
    neighbors = type("Table", (), {"ids": ids, "distances": np.zeros(ids.shape, np.float32), "artifact": None})()
    stage = FilteredStage(store, store, neighbors, store.chunks, FilterConfig(other_documents=True))
    with stage.prepare():
        left, _ = stage.choose(np.arange(store.chunks))
    own = store.document_of(np.arange(store.chunks))
    for query, row in enumerate(left):
        assert row[row != NO_NEIGHBOR].tolist() == np.flatnonzero(own != own[query]).tolist()


TOKENS = st.lists(st.integers(0, 2), min_size=0, max_size=30)


@given(st.lists(st.tuples(TOKENS, TOKENS, st.booleans(), st.booleans()), min_size=1, max_size=4), st.integers(0, 3))
def test_similarities_are_those_of_the_sets(pairs, padding):
    width = max(1 + len(tokens) + marked for one, other, *marks in pairs
                for tokens, marked in zip((one, other), marks, strict=True)) + padding  # fmt: skip
    sides = []
    for side in (0, 1):
        tokens = np.full((len(pairs), width), 1)
        lengths = np.zeros(len(pairs), np.int64)
        for row, pair in enumerate(pairs):
            content = [MARKER] * pair[2 + side] + pair[side]
            tokens[row, : len(content)] = content
            lengths[row] = len(content)
        sides.append(token_grams(tokens, lengths, MARKER))
    expected = [jaccard(grams(one), grams(other)) for one, other, *_ in pairs]
    assert similarities(*sides).tolist() == pytest.approx(expected)
    assert ((sides[0] != NO_GRAM).sum(1) == [len(grams(one)) for one, *_ in pairs]).all()
