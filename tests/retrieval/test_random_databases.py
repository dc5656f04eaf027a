"""Random databases from one search: equal to an exact search of each, as long as the stored neighbors suffice."""

from itertools import pairwise

import faiss
import numpy as np
import pytest
from pipeline import RandomSentences, build_chunks

from retro_lab.artifacts.stage import Stage
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.retrieval.config import DatabaseConfig, EmbedderConfig, IndexConfig, RetrievalConfig, Unit
from retro_lab.retrieval.database import Database
from retro_lab.retrieval.embeddings import Embeddings
from retro_lab.retrieval.index import Index, IndexStage
from retro_lab.retrieval.neighbors import NO_NEIGHBOR, Neighbors, NeighborsStage, SearchStage
from retro_lab.retrieval.random_databases import RandomDatabase, RandomPartStage, chances_of
from retro_lab.retrieval.searchers import DenseSearcher

WIDTH, STORED, CASES = 8, 48, 200


class Vectors(Stage):
    """Vectors of whole numbers, so that every distance is exact."""

    name = "embeddings"
    unit = "chunks"

    def __init__(self, chunks, seed):
        self.chunks, self.seed = chunks, seed

    def settings(self):
        return {"chunks": self.chunks, "seed": self.seed}

    def shard_sizes(self):
        return [self.chunks]

    def write_shard(self, shard, folder, advance):
        vectors = np.random.default_rng(self.seed).integers(-500, 501, (self.chunks, WIDTH))
        np.save(folder / "embeddings.npy", vectors.astype(np.float16))
        return {}

    def finish(self, shards, facts, folder):
        return {"chunks": self.chunks, "width": WIDTH, "shard_size": self.chunks}


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("random"), tiny_bert, RandomSentences(documents=64, longest=60))


@pytest.fixture(scope="module")
def searched(chunks):
    """Vectors of database and queries, and the neighbors that the real stages find, in two shards."""
    store, queries = chunks.stores["train"], chunks.stores["validation"]
    build = chunks.artifacts.build
    keys, held_out = (Embeddings(build(Vectors(one.chunks, n))) for n, one in enumerate((store, queries)))
    cuts = [0, int(store.document_start[store.documents // 3]), store.chunks]
    searches = []
    for start, stop in pairwise(cuts):
        index = Index(build(IndexStage(keys, start, stop, IndexConfig(factory="Flat"), held_out, STORED, 0)))
        searches.append(build(SearchStage(DenseSearcher(held_out, index), queries, store, STORED, 40)))
    neighbors = Neighbors(build(NeighborsStage(searches)))
    return keys.range(0, store.chunks), held_out.range(0, queries.chunks), neighbors


def held(store, unit, seed, share):
    """Chunks that a random database holds."""
    return np.flatnonzero(chances_of(store, np.arange(store.chunks), unit, seed) < share)


def test_what_is_left_is_what_a_search_of_the_random_database_finds(chunks, searched):
    """For 200 random shares, seeds and k, and every chunk of which k neighbors are left."""
    store, queries = chunks.stores["train"], chunks.stores["validation"]
    keys, vectors, neighbors = searched
    draw = np.random.default_rng(0)
    compared = equal = 0
    for _ in range(CASES):
        share, seed, k = float(draw.uniform(0.05, 1)), int(draw.integers(2**32)), int(draw.integers(1, 11))
        unit = Unit(draw.choice(list(Unit)))
        stage = RandomPartStage(queries, store, neighbors, k, share, unit, seed)
        ids, distances = stage.choose(np.arange(queries.chunks))
        thinned = faiss.IndexFlatL2(WIDTH)
        kept = held(store, unit, seed, share)
        thinned.add(keys[kept])
        wanted, found = thinned.search(vectors, k)
        left = ids[:, -1] != NO_NEIGHBOR
        compared += left.sum()
        same = (distances == wanted).all(1)
        # Chunks at one distance may stand in any order.
        same &= ((ids == np.where(found >= 0, kept[found], -1)) | (np.diff(wanted, axis=1, prepend=-1) == 0)).all(1)
        equal += same[left].sum()
        # Where fewer are left, they are the first that the search finds.
        some = np.where(ids != NO_NEIGHBOR, distances == wanted, True)
        assert some.all()
    assert compared > 0.5 * CASES * queries.chunks
    assert equal == compared


@pytest.fixture(scope="module")
def database(chunks):
    return Database(
        chunks.artifacts, "random", chunks.stores["train"], chunks.stores["test"],
        DatabaseConfig(), RetrievalConfig(method="bm25", stored=30), IndexConfig(), EmbedderConfig(model="none"), k=1,
    )  # fmt: skip


@pytest.mark.parametrize("unit", list(Unit))
def test_the_share_from_which_on_a_random_database_is_complete(chunks, database, unit):
    store, queries, k = chunks.stores["train"], chunks.stores["validation"], 3
    ids = database.neighbors_of(queries).ids
    assert (ids != NO_NEIGHBOR).all()
    for seed in range(3):
        above = RandomDatabase(chunks.artifacts, database, 0.5, seed, unit=unit, k=k).complete_above(queries, k)
        assert 0 < above < 1
        for share in (above * 0.5, above, above * (1 + 1e-9)):
            part = RandomDatabase(chunks.artifacts, database, share, seed, unit=unit, k=k)
            counts = np.isin(ids, held(store, unit, seed, share)).sum(1)
            assert part.complete(queries, k) == (counts >= k).mean()
            assert (part.complete(queries, k) == 1) == (share > above)


def test_a_list_of_all_that_there_is_needs_no_more(tmp_path, chunks):
    """A chunk for which the whole database is stored has all neighbors that a random part can have."""
    whole = Database(
        ArtifactStore(tmp_path), "random", chunks.stores["train"], chunks.stores["test"],
        DatabaseConfig(fraction=0.05), RetrievalConfig(method="bm25", stored=100), IndexConfig(),
        EmbedderConfig(model="none"), k=1,
    )  # fmt: skip
    queries = chunks.stores["validation"]
    assert whole.chunks < 100
    part = RandomDatabase(ArtifactStore(tmp_path), whole, 0.1, 0, unit=Unit.chunk, k=5)
    assert (part.neighbors_of(queries).ids[:, 4] == NO_NEIGHBOR).any()
    assert part.complete(queries, 5) == 1
    assert part.complete_above(queries, 5) == 0


@pytest.mark.parametrize("unit", list(Unit))
def test_size_and_content_of_a_random_database(chunks, database, unit):
    store = chunks.stores["train"]
    sizes = []
    for share in (0.2, 0.7, 1.0):
        part = RandomDatabase(chunks.artifacts, database, share, 4, unit=unit, k=1)
        kept = held(store, unit, 4, share)
        assert (part.chunks, part.tokens) == (len(kept), store.real_tokens(kept).sum())
        documents = store.document_of(kept)
        if unit is Unit.document:  # all chunks of each
            np.testing.assert_array_equal(np.bincount(documents)[np.unique(documents)],
                                          np.diff(store.document_start)[np.unique(documents)])  # fmt: skip
        sizes.append(set(kept.tolist()))
    assert sizes[0] < sizes[1] < sizes[2] == set(range(store.chunks))
    shares = [len(held(store, Unit.chunk, seed, 0.3)) / store.chunks for seed in range(40)]
    assert np.mean(shares) == pytest.approx(0.3, abs=0.03)
    assert len(set(shares)) > 5


FIRST_KEPT = [0, 3, 5, 6, 9, 16, 26, 33, 40, 45]
"""Numbers that seed 3 keeps with a probability of 0.2, as they were first computed."""


def test_a_seed_keeps_the_same_on_every_machine(chunks):
    store = chunks.stores["train"]
    assert held(store, Unit.chunk, 3, 0.2)[: len(FIRST_KEPT)].tolist() == FIRST_KEPT
    documents = np.unique(store.document_of(held(store, Unit.document, 3, 0.2)))
    assert store.documents > FIRST_KEPT[-1]
    assert documents[: len(FIRST_KEPT)].tolist() == FIRST_KEPT
