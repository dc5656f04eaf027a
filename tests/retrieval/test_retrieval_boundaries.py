"""How work is cut changes nothing: shards, blocks and batches exactly full, one more, one less, of one, of all."""

import numpy as np
import pytest
from clusters import Clusters
from hypothesis import given
from hypothesis import strategies as st
from pipeline import RandomSentences, build_chunks

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.retrieval import embeddings, index, neighbors
from retro_lab.retrieval.bm25 import BM25
from retro_lab.retrieval.config import IndexConfig
from retro_lab.retrieval.embeddings import Embeddings, EmbeddingsStage
from retro_lab.retrieval.index import Index, IndexStage
from retro_lab.retrieval.neighbors import NO_NEIGHBOR, Neighbors, NeighborsStage, SearchStage
from retro_lab.retrieval.searchers import BM25Searcher, DenseSearcher


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("boundaries"), tiny_bert, RandomSentences(8, 30))


@pytest.fixture
def fresh(tmp_path_factory, monkeypatch):
    """A store without artifacts, for each example."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return lambda: ArtifactStore(tmp_path_factory.mktemp("fresh"))


def sizes_around(count):
    return sorted({1, 2, count - 1, count, count + 1, 2 * count, -(-count // 2)} - {0})


def test_embeddings_do_not_depend_on_the_shards_and_windows(chunks, fresh, monkeypatch):
    store = chunks.stores["train"]
    whole = chunks.embeddings["train"].range(0, store.chunks)
    for size in sizes_around(store.chunks):
        monkeypatch.setattr(embeddings, "WINDOW", max(1, size - 1))
        cut = Embeddings(fresh().build(EmbeddingsStage(store, chunks.embedder, size)))
        assert len(cut.artifact.manifest.files) == -(-store.chunks // size)
        np.testing.assert_allclose(cut.range(0, store.chunks), whole, atol=2e-3)


@given(st.data())
def test_any_rows_of_any_shards_are_read(fresh, data):
    count = data.draw(st.integers(1, 12))
    shard = data.draw(st.integers(1, 13))
    stage = Clusters(count, 0)
    stage.shard_sizes = lambda: [min(shard, count - start) for start in range(0, count, shard)]
    vectors = np.random.default_rng(0).integers(-9, 10, (count, 32)).astype(np.float16)

    def write(number, folder, advance):
        np.save(folder / "embeddings.npy", vectors[number * shard : (number + 1) * shard])
        return {}

    stage.write_shard, stage.finish = write, lambda *_: {"chunks": count, "width": 32, "shard_size": shard}
    built = Embeddings(fresh().build(stage))
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    np.testing.assert_array_equal(built.range(start, stop), vectors[start:stop])
    rows = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=6)), int)
    np.testing.assert_array_equal(built.rows(rows), vectors[rows])
    np.testing.assert_array_equal(built.rows(rows[:, None]), vectors[rows[:, None]])


@pytest.mark.parametrize("vectors", [1, 2, 5])
def test_an_index_does_not_depend_on_the_blocks(fresh, monkeypatch, vectors):
    artifacts = fresh()
    keys, queries = (Embeddings(artifacts.build(stage)) for stage in (Clusters(vectors, 0), Clusters(3, 1)))
    asked = queries.range(0, 3)
    found = []
    for block in sizes_around(vectors):
        monkeypatch.setattr(index, "BLOCK", block)
        monkeypatch.setattr(index, "QUERIES_AT_ONCE", block)
        config = IndexConfig(factory="HNSW4,Flat", search="auto")
        built = Index(fresh().build(IndexStage(keys, 0, vectors, config, queries, 100, 0)))
        assert built.recalls == {10: 1, 100: 1}
        found.append(built.open().search(asked, vectors + 3)[1])
    assert (np.sort(found[0], 1)[:, 3:] == np.arange(vectors)).all()
    assert (found[0] == NO_NEIGHBOR).sum() == 3 * 3
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("method", ["dense", "bm25"])
def test_neighbors_do_not_depend_on_the_shards_and_batches(chunks, fresh, monkeypatch, method):
    """With more neighbors stored than other documents hold: all of those are found, and the rest is missing."""
    store = chunks.stores["train"]
    keys = chunks.embeddings["train"]
    own = store.document_of(np.arange(store.chunks))
    others = store.chunks - np.bincount(own)[own]
    config = IndexConfig(factory="Flat")
    flat = Index(
        chunks.artifacts.build(IndexStage(keys, 0, store.chunks, config, chunks.embeddings["validation"], 1, 0))
    )
    tables = []
    for size in sizes_around(store.chunks):
        for stored in (1, store.chunks - 1, store.chunks + 3):
            monkeypatch.setattr(neighbors, "SHARD_QUERIES", size)
            monkeypatch.setattr(neighbors, "FETCHED_AT_ONCE", max(1, stored * size // 2))
            searcher = DenseSearcher(keys, flat)
            if method == "bm25":
                searcher = BM25Searcher(store, BM25(store, 1.5, 0.75), 0, store.chunks)
            artifacts = fresh()
            search = artifacts.build(SearchStage(searcher, store, store, stored, size))
            assert len(search.manifest.files) == 2 * -(-store.chunks // size)
            ids = Neighbors(artifacts.build(NeighborsStage([search]))).ids
            assert ids.shape == (store.chunks, stored)
            if method == "dense":
                assert ((ids != NO_NEIGHBOR).sum(1) == np.minimum(others, stored)).all()
                assert (ids[:, 0] != NO_NEIGHBOR).all()
            tables.append((stored, ids))
    widest = next(ids for stored, ids in tables if stored > store.chunks)
    for stored, ids in tables:
        if method == "bm25":  # FAISS rounds otherwise in batches of other sizes
            np.testing.assert_array_equal(ids, widest[:, :stored])
        assert (np.sort(ids) == np.sort(widest[:, :stored])).mean() > 0.9
