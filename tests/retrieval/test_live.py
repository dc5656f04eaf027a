"""Chunks that are in no store retrieve what is stored for the same chunks of a held-out text."""

import numpy as np
import pytest
from pipeline import build_chunks

from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.config import Control, DatabaseConfig, EmbedderConfig, IndexConfig, RetrievalConfig, Value
from retro_lab.retrieval.database import Database
from retro_lab.retrieval.neighbors import NO_NEIGHBOR

STORED = 12


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("live"), tiny_bert)


@pytest.fixture(scope="module")
def database(chunks, tiny_bert):
    """A database of the training split, cut into two shards."""

    def database(method, factory="Flat", metric="l2", control=None, fraction=1.0, query_batch=4096):
        return Database(
            chunks.artifacts, "random", chunks.stores["train"], chunks.stores["test"],
            DatabaseConfig(fraction=fraction, fractions=[0.4]),
            RetrievalConfig(method=method, stored=STORED, control=control, candidates=20),
            IndexConfig(factory=factory, metric=metric, query_batch=query_batch),
            EmbedderConfig(model=str(tiny_bert), max_length=64, batch_size=16, precision="float32"), k=1,
        )  # fmt: skip

    return database


def texts_of(store, numbers):
    """The real tokens of chunks, as a prompt would hold them: with the marker that begins its document."""
    lengths = store.real_tokens(numbers)
    return [row[:length] for row, length in zip(store.read(numbers), lengths, strict=True)]


@pytest.mark.parametrize("value", Value)
@pytest.mark.parametrize(
    ("method", "factory", "metric"),
    [
        ("dense", "Flat", "l2"),
        ("dense", "IVF4,SQ8", "cosine"),
        ("bm25", "Flat", "l2"),
        ("hybrid", "Flat", "inner_product"),
    ],
)
def test_live_neighbors_are_the_stored_ones(chunks, database, method, factory, metric, value):
    store = chunks.stores["validation"]
    searched = database(method, factory, metric)
    stored, live = searched.neighbors_of(store), searched.live(k=3)
    ids, distances = live.search(texts_of(store, np.arange(store.chunks)))
    np.testing.assert_array_equal(ids, stored.ids)
    np.testing.assert_array_equal(distances, stored.distances)
    tokens, lengths = live.read(ids, 3, value)
    expected, expected_lengths = searched.retrieved_by(store, value).read(np.arange(store.chunks), 3)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(lengths, expected_lengths)
    assert lengths.any()


@pytest.mark.parametrize("method", ["dense", "bm25", "hybrid"])
def test_a_chunk_finds_as_near_ones_in_any_batch_and_only_what_is_in_the_database(chunks, database, method):
    """Rounding in another batch may exchange neighbors that are equally far, as those of repeated words are."""
    store = chunks.stores["validation"]
    numbers = np.arange(0, store.chunks, 5)
    searched = database(method, fraction=0.4, query_batch=3)
    ids, distances = searched.live(k=1).search(texts_of(store, numbers))
    stored = searched.neighbors_of(store)
    np.testing.assert_allclose(distances, stored.distances[numbers], rtol=1e-2, atol=1e-4)
    assert (ids == stored.ids[numbers]).mean() > 0.95
    assert ids.max() < searched.chunks < chunks.stores["train"].chunks


def test_no_chunks_and_chunks_without_text_are_searched_for_too(chunks, database):
    marker = chunks.stores["train"].tokenizer.document_marker
    live = database("bm25").live(k=1)
    ids, distances = live.search([])
    assert ids.shape == distances.shape == (0, STORED)
    ids, distances = live.search([np.array([marker], np.uint16)])
    assert (ids == NO_NEIGHBOR).all()
    assert np.isinf(distances).all()
    _, lengths = live.read(ids, 2, Value.neighbor)
    assert (lengths == 0).all()
    assert (database("dense").live(k=1).search([np.array([marker], np.uint16)])[0] >= 0).all()


def test_more_neighbors_than_are_stored_can_be_read(chunks, database):
    store = chunks.stores["validation"]
    ids, _ = database("bm25").live(k=STORED + 5).search(texts_of(store, np.arange(3)))
    assert ids.shape == (3, STORED + 5)
    np.testing.assert_array_equal(ids[:, :STORED], database("bm25").neighbors_of(store).ids[:3])


def test_what_cannot_be_retrieved_live_is_refused(database):
    with pytest.raises(ConfigurationError, match=r"retrieval\.control=shuffled makes neighbors for stored texts only"):
        database("bm25", control=Control.shuffled).live(k=1)
    with pytest.raises(ConfigurationError, match=r"is more than the \d+ chunks of the database"):
        database("bm25").live(k=100_000)
