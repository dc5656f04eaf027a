"""BM25: scores as the formula has them, shards that merge exactly, and dense candidates ranked again."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline import build_chunks, search

from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.bm25 import BM25, highest
from retro_lab.retrieval.neighbors import NO_NEIGHBOR

K1, B = 1.5, 0.75


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("bm25"), tiny_bert)


@pytest.fixture(scope="module")
def by_hand(chunks):
    """Score of every training chunk for a query chunk of a split, as Robertson and Zaragoza 2009 write it."""

    def text(store, chunk):
        document = int(np.searchsorted(store.document_start, chunk, side="right")) - 1
        begin = (chunk - int(store.document_start[document])) * store.chunk_length
        length = min(store.chunk_length, int(store.document_length[document]) - begin)
        tokens = store.read(np.array([chunk]))[0][:length].tolist()
        return tokens[1:] if begin == 0 else tokens  # a document begins with its marker

    keys = [text(chunks.stores["train"], chunk) for chunk in range(chunks.stores["train"].chunks)]
    holding = Counter(token for key in keys for token in set(key))
    mean = sum(map(len, keys)) / len(keys)

    def scores(split, chunk):
        result = np.zeros(len(keys))
        for token in text(chunks.stores[split], chunk):
            idf = math.log(1 + (len(keys) - holding[token] + 0.5) / (holding[token] + 0.5))
            for number, key in enumerate(keys):
                repeats = key.count(token)
                result[number] += idf * repeats / (repeats + K1 * (1 - B + B * len(key) / mean))
        return result

    return scores


def test_scores_are_those_of_the_formula(chunks, by_hand):
    stored = chunks.stores["train"].chunks
    table = search(chunks, "validation", stored, method="bm25")
    ids, distances = table.ids, table.distances
    for query in (0, 1, 7, len(ids) - 1):
        expected = by_hand("validation", query)
        found = ids[query] != NO_NEIGHBOR
        assert set(ids[query, found]) == set(np.flatnonzero(expected > 0))
        np.testing.assert_allclose(-distances[query, found], expected[ids[query, found]], rtol=1e-5)
        assert (np.diff(distances[query, found]) >= 0).all()


def test_merging_shards_equals_searching_all_at_once(chunks):
    """Exactly, equal scores too: frequencies and mean length are those of the whole training split."""
    whole = search(chunks, "train", 6, method="bm25")
    parts = search(chunks, "train", 6, cuts=[1, 3, 20], method="bm25")
    np.testing.assert_array_equal(parts.ids, whole.ids)
    np.testing.assert_array_equal(parts.distances, whole.distances)


def test_hybrid_ranks_the_dense_candidates_by_bm25(chunks, by_hand):
    candidates = search(chunks, "validation", 12).ids
    table = search(chunks, "validation", 5, method="hybrid", candidates=12)
    ids, distances = table.ids, table.distances
    for query in (0, 3, len(ids) - 1):
        expected = by_hand("validation", query)
        assert set(ids[query]) <= set(candidates[query])
        np.testing.assert_allclose(-distances[query], np.sort(expected[candidates[query]])[::-1][:5], rtol=1e-5)
        np.testing.assert_allclose(-distances[query], expected[ids[query]], rtol=1e-5)
    assert (ids != candidates[:, :5]).any()


@pytest.mark.parametrize(("k1", "b"), [(-1, 0.5), (1, 1.5), (1, -0.1)])
def test_constants_that_rank_nothing_are_refused(chunks, k1, b):
    with pytest.raises(ConfigurationError, match=r"retrieval\.bm25_k1=.* retrieval\.bm25_b="):
        BM25(chunks.stores["train"], k1, b)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 10))
def test_the_highest_of_equals_come_in_order_of_place(scores, count):
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count]
    assert highest(np.array(scores, np.float32), count).tolist() == expected
