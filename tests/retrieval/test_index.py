"""The index: which one is chosen, how good it says it is, and that it cannot fail on a small corpus."""

import subprocess
import sys

import faiss
import numpy as np
import pytest
from clusters import WIDTH, Clusters

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.errors import ConfigurationError
from retro_lab.retrieval import vectors
from retro_lab.retrieval.config import IndexConfig, Metric
from retro_lab.retrieval.embeddings import Embeddings
from retro_lab.retrieval.factory import choose_factory
from retro_lab.retrieval.index import Index, IndexStage
from retro_lab.retrieval.vectors import VectorIndex, distances

VECTORS, QUERIES = 4000, 150
TRAINED = "IVF32,PQ8x4fs,Refine(SQ8)"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return ArtifactStore(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def keys(artifacts):
    return Embeddings(artifacts.build(Clusters(VECTORS, 0)))


@pytest.fixture(scope="module")
def queries(artifacts):
    return Embeddings(artifacts.build(Clusters(QUERIES, 1)))


@pytest.fixture(scope="module")
def build(artifacts, keys, queries):
    """Index the first `stop` keys."""

    def build(factory, stop=VECTORS, store=artifacts, stored=100, **settings):
        config = IndexConfig(factory=factory, **settings)
        return Index(store.build(IndexStage(keys, 0, stop, config, queries, stored, 0)))

    return build


def by_hand(queries, keys, metric):
    """All distances, [n, N], as the metrics are defined."""
    if metric == "inner_product":
        return -queries @ keys.T
    if metric == "cosine":
        queries, keys = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, keys))
    return ((queries[:, None] - keys) ** 2).sum(-1)


def found_of(ids, nearest):
    """Share of the nearest, [n, k], among the first k ids of each row."""
    count = nearest.shape[1]
    return np.mean([len(set(row[:count]) & set(true)) / count for row, true in zip(ids, nearest, strict=True)])


@pytest.mark.parametrize(
    ("vectors", "factory"),
    [(1, "Flat"), (200_000, "Flat"), (10**6, "IVF4096,PQ192x4fs,Refine(SQ8)"), (28 * 10**9, "IVF524288_HNSW32,")],
)
def test_auto_follows_the_size(vectors, factory):
    chosen = choose_factory("auto", vectors, 384, 200_000)
    assert chosen.factory.startswith(factory)
    assert not chosen.remark
    assert faiss.index_factory(384, choose_factory("auto", min(vectors, 10**6), 384, 200_000).factory).d == 384


def test_auto_follows_the_wanted_recall_and_the_memory():
    def chosen(recall=0.95, max_bytes=None):
        return choose_factory("auto", 10**6, 384, 200_000, recall, max_bytes)

    assert chosen(recall=0.99).factory == "IVF4096,PQ192x4fs,Refine(SQfp16)"
    ladder = [chosen(max_bytes=bytes_each * 1e6) for bytes_each in (500, 400, 250, 110, 60)]
    refined = [choice.factory.partition("x4fs")[2] for choice in ladder]
    assert refined == [",Refine(SQ8)", ",Refine(SQ4)", "", "", ""]
    assert [choice.factory.partition("PQ")[2].partition("x")[0] for choice in ladder[2:]] == ["192", "96", "48"]
    assert "leaves no room for more recall" in ladder[1].remark
    too_little = chosen(max_bytes=1e6)
    assert too_little.factory == ladder[-1].factory
    assert "the smallest is used" in too_little.remark
    # An exact index is bounded too.
    assert choose_factory("auto", 100_000, 384, 200_000, 0.95, 1e8).factory == "IVF1024,PQ192x4fs,Refine(SQ8)"


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("factory", ["Flat", "IVF32,Flat", "HNSW16,Flat", TRAINED])
def test_every_metric_finds_what_is_nearest_by_hand(build, keys, queries, metric, factory):
    index = build(factory, metric=metric).open()
    asked = queries.range(0, QUERIES)
    expected = by_hand(asked, keys.range(0, VECTORS), metric)
    found, ids = index.search(asked, 10)
    assert (np.diff(found, axis=1) >= 0).all()
    # The 4-bit codes' refinement knows the vectors in 8 bits, so its distances are a little off.
    tolerance = {"rtol": 0.1, "atol": 0.5} if factory == TRAINED else {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(found, np.take_along_axis(expected, ids, 1), **tolerance)
    nearest = np.argsort(expected, axis=1)[:, :10]
    recall = found_of(ids, nearest)
    assert recall >= (1 if factory == "Flat" else 0.94)
    np.testing.assert_allclose(
        distances(asked, keys.rows(ids), metric), np.take_along_axis(expected, ids, 1), atol=1e-3
    )


@pytest.mark.parametrize("stored", [1, 2, 10, 100])
def test_the_manifest_says_how_good_the_index_is(build, keys, queries, stored):
    """Recall is that of the index as it is opened, for as many neighbors as searches store, against exact search."""
    index = build(TRAINED, recall=0.9, stored=stored)
    asked = queries.range(0, QUERIES)
    nearest = np.argsort(by_hand(asked, keys.range(0, VECTORS), "l2"), axis=1)
    _, ids = index.open().search(asked, stored)
    stated = index.recalls
    assert list(stated) == sorted({min(10, stored), stored})
    for count, share in stated.items():
        assert share == pytest.approx(found_of(ids, nearest[:, :count]), abs=2e-3)
    assert 0.9 <= stated[min(10, stored)] < 1
    assert stored == 1 or stated[stored] <= stated[min(10, stored)]
    assert index.facts.search.startswith("nprobe=")
    size = (index.artifact.shard(0) / "index.faiss").stat().st_size
    assert index.facts.bytes_per_vector == pytest.approx(size / VECTORS, abs=0.1)
    assert index.artifact.facts["measured_on"] == f"{QUERIES} held-out chunks"


def test_a_higher_recall_visits_more(build):
    visited = []
    for recall in (0.5, 0.9, 0.99):
        index = build("IVF32,Flat", recall=recall)
        assert index.recalls[10] >= recall
        visited.append(int(index.facts.search.removeprefix("nprobe=")))
    assert visited == sorted(visited)
    assert visited[0] < visited[-1]


def test_search_parameters_that_are_given_are_used_and_measured(build):
    one, all_lists = (build("IVF32,Flat", search=f"nprobe={lists}").recalls for lists in (1, 32))
    assert one[10] < all_lists[10] == 1


def test_a_larger_probe_scale_visits_every_list(build, keys, queries):
    index = build("IVF32,Flat", search="nprobe=1").open()
    asked = queries.range(0, QUERIES)
    few, _ = index.search(asked, 100)
    whole, _ = index.search(asked, 100, index.largest_probe_scale())
    exact = np.sort(by_hand(asked, keys.range(0, VECTORS), "l2"), axis=1)[:, :100]
    np.testing.assert_allclose(whole, exact, rtol=1e-3, atol=1e-3)
    assert (few > whole + 1e-3).any()


def test_an_index_is_trained_on_vectors_from_everywhere(build):
    """Chunks lie in the order of their documents: lists learned from the first alone need eight visits for this."""
    assert build("IVF32,Flat", training_vectors=1300).facts.search in ("nprobe=1", "nprobe=2")


@pytest.mark.parametrize(("factory", "stop"), [("IVF4096,PQ8x8", 20), ("IVF16,Flat", 3), ("PQ8", 50), (TRAINED, 10)])
def test_a_corpus_too_small_to_train_on_is_searched_exactly(build, capsys, factory, stop):
    """Peer's issue (Megatron 699): a template index and too small a corpus end in an error of FAISS."""
    index = build(factory, stop=stop)
    assert index.facts.factory == "Flat"
    assert index.recalls[10] == 1
    assert f"{stop} vectors are too few to train {factory} on; searching exactly" in index.facts.remark
    assert len(index.open()) == stop


def test_auto_on_a_small_corpus_is_exact_and_says_so(build, tmp_path):
    facts = build("auto", stop=30, exact_below=0).facts
    assert facts.factory == "Flat"
    assert "30 vectors are too few" in facts.remark
    assert build("auto").facts.remark == ""


def test_auto_reaches_the_wanted_recall(build):
    index = build("auto", exact_below=1000)
    assert index.facts.factory == "IVF64,PQ16x4fs,Refine(SQ8)"
    assert index.recalls[10] >= 0.95


@pytest.mark.parametrize("factory", ["HNSW16,Flat", "IVF16_HNSW16,Flat", TRAINED])
def test_building_twice_gives_the_same_bytes(build, factory, tmp_path):
    """The manifest too: it holds no time that was measured."""
    again = build(factory, store=ArtifactStore(tmp_path)).artifact.folder / "manifest.json"
    assert again.read_bytes() == (build(factory).artifact.folder / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"factory": "Flatt"}, r"index\.factory=Flatt is not a FAISS factory string.*width 32"),
        ({"factory": "IVF16,PQ48x4fs,Refine(SQ8)"}, r"into 48 pieces, which .* width 32 .*such as PQ32 for PQ48"),
        ({"factory": "IVF16,PQ12"}, r"into 12 pieces, which .* width 32 .*such as PQ8 for PQ12"),
        ({"factory": "Flat", "metric": "l3"}, r"index\.metric=l3 is not one of l2, inner_product, cosine"),
        ({"factory": "Flat", "recall": 95}, r"index\.recall is a share, above 0 and up to 1, not 95"),
        ({"factory": "IVF16,Flat", "search": "nprobes=3"}, r"index\.search=nprobes=3 cannot be set"),
        ({"factory": "IVF64,Flat", "training_vectors": 10}, r"index\.training_vectors=10; take more, or null"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(build, settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        build(**settings)


def test_ids_and_distances_of_what_is_not_there():
    index = VectorIndex.create("Flat", WIDTH, "l2")
    index.add(np.ones((2, WIDTH), np.float32))
    found, ids = index.search(np.zeros((1, WIDTH), np.float32), 4)
    assert ids.tolist() == [[0, 1, -1, -1]]
    np.testing.assert_array_equal(found, [[WIDTH, WIDTH, np.inf, np.inf]])


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "IVF4,PQ4x4fs,Refine(Flat)"])
def test_searching_a_few_queries_at_a_time_finds_the_same(factory, monkeypatch):
    vectors_of = np.random.default_rng(0).standard_normal((1200, 8)).astype(np.float32)
    index = VectorIndex.create(factory, 8, "l2")
    if not index.is_trained:
        index.train(vectors_of)
    index.add(vectors_of)
    if "Refine" in factory:
        index.set_parameters("k_factor_rf=8")
    whole = index.search(vectors_of[:50], 5)
    monkeypatch.setattr(vectors, "CANDIDATES_AT_ONCE", 100)
    few = index.search(vectors_of[:50], 5)
    np.testing.assert_allclose(few[0], whole[0], atol=1e-5)
    np.testing.assert_array_equal(few[1], whole[1])
    assert index.search(vectors_of[:0], 5)[1].shape == (0, 5)


def test_many_neighbors_begin_with_the_few_and_cost_less_each():
    vectors_of = np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32)
    index = VectorIndex.create("IVF4,PQ4x4fs,Refine(Flat)", 8, "l2")
    index.train(vectors_of)
    index.add(vectors_of)
    index.set_parameters("nprobe=4,k_factor_rf=32")
    few, many = index.search(vectors_of[:200], 10)[1], index.search(vectors_of[:200], 100)[1]
    assert (few == many[:, :10]).mean() > 0.99
    exact = np.argsort(((vectors_of[:200, None] - vectors_of) ** 2).sum(-1), axis=1)[:, :100]
    found = np.mean([len(np.intersect1d(one, other)) for one, other in zip(many, exact, strict=True)])
    assert found > 75


def test_faiss_is_left_as_it_was(monkeypatch):
    """Neither importing nor searching changes how FAISS works for others in the process."""
    code = "import faiss as f; t = f.cvar.distance_compute_blas_threshold; import retro_lab.retrieval.vectors; "
    subprocess.run([sys.executable, "-c", code + "assert f.cvar.distance_compute_blas_threshold == t"], check=True)
    seen = []
    monkeypatch.setattr(
        vectors, "normalize", lambda rows: seen.append(faiss.cvar.distance_compute_blas_threshold) or rows
    )
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 77)
    index = VectorIndex.create("Flat", WIDTH, "cosine")
    index.add(np.ones((2, WIDTH), np.float32))
    index.search(np.ones((1, WIDTH), np.float32), 1)
    assert seen == [20, 20]
    assert faiss.cvar.distance_compute_blas_threshold == 77
