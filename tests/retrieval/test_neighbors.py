"""Search and merging: what a chunk retrieves, and what it never may."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline import RandomSentences, build_chunks, index, search

from retro_lab.retrieval.config import Method, Value
from retro_lab.retrieval.neighbors import NO_NEIGHBOR, merge_sorted
from retro_lab.retrieval.sequences import Retrieved


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("neighbors"), tiny_bert)


@pytest.mark.parametrize("method", list(Method))
def test_training_chunks_never_retrieve_their_own_document(chunks, method):
    """No token of a neighbor or its continuation is of the query's document, let alone of the query's own chunk.

    Peers' bugs 4, 8, 9 (continuation of the query's own document; overlapping neighbors; offsets never passed to the
    filter).
    """
    store = chunks.stores["train"]
    ids = search(chunks, "train", stored=8, method=method).ids
    found = ids != NO_NEIGHBOR
    assert found.any(1).all()
    queries = np.arange(store.chunks)
    _, lengths = Retrieved(store, ids, Value.neighbor_and_continuation).read(queries, 8)
    m = store.chunk_length
    document_of_token = np.repeat(np.arange(store.documents), np.diff(store.document_start) * m)
    for query, rank in np.argwhere(found):
        begin = ids[query, rank] * m
        documents = set(document_of_token[begin : begin + lengths[query, rank]])
        assert len(documents) == 1
        assert document_of_token[query * m] not in documents


@pytest.fixture(scope="module")
def grouped(tmp_path_factory, tiny_bert):
    """Three groups, each of more than a hundred documents to train on."""
    source = RandomSentences(documents=480, longest=30, groups=3)
    return build_chunks(tmp_path_factory.mktemp("groups"), tiny_bert, source)


def groups_of(store):
    """The name of each chunk's group, from the table of documents."""
    names = np.array(pq.read_table(store.documents_table)["group"].to_pylist())
    return np.repeat(names, np.diff(store.document_start))


@pytest.mark.parametrize("method", list(Method))
def test_training_chunks_never_retrieve_their_own_group(grouped, method):
    """A held-out chunk cannot, as its whole group is held out; training has to see neighbors as scoring does."""
    store = grouped.stores["train"]
    groups = groups_of(store)
    assert sorted(np.unique(groups)) == ["group 0", "group 1", "group 2"]
    assert min(len(np.unique(store.document_of(np.flatnonzero(groups == name)))) for name in groups[:9]) > 100
    ids = search(grouped, "train", stored=6, method=method).ids
    assert (ids != NO_NEIGHBOR).all()
    assert (groups[ids] != groups[:, None]).all()


@pytest.mark.parametrize("settings", [{}, {"factory": "IVF4,Flat", "search": "nprobe=1"}])
def test_the_neighbors_are_the_nearest_of_other_groups(grouped, settings):
    """All of them, however many chunks of the query's own group are nearer, also if only one list was probed first."""
    store = grouped.stores["train"]
    groups = groups_of(store)
    keys = grouped.embeddings["train"].range(0, store.chunks)
    exact = np.where(groups[:, None] == groups, np.inf, ((keys[:, None] - keys[None]) ** 2).sum(-1))
    wanted = np.isfinite(exact).sum(1)
    found = search(grouped, "train", stored=store.chunks, **settings)
    np.testing.assert_array_equal((found.ids != NO_NEIGHBOR).sum(1), wanted)
    np.testing.assert_allclose(found.distances, np.sort(exact, 1), rtol=1e-3, atol=1e-4)


def test_chunks_of_a_group_name_its_first_document(grouped, chunks):
    store, groups = grouped.stores["train"], groups_of(grouped.stores["train"])
    everything = np.arange(store.chunks)
    found = store.group_of(everything)
    firsts = {name: store.document_of(everything[groups == name][:1])[0] for name in groups}
    assert found.tolist() == [firsts[name] for name in groups]
    store = chunks.stores["train"]
    everything = np.arange(store.chunks)
    np.testing.assert_array_equal(store.group_of(everything), store.document_of(everything))


@pytest.mark.parametrize("cuts", [[], [40]])
@pytest.mark.parametrize("settings", [{}, {"factory": "IVF4,Flat", "search": "nprobe=1"}])
def test_the_filter_still_finds_as_many_as_there_are(chunks, settings, cuts):
    """Every chunk gets `stored` neighbors if other documents hold that many, however long its own is."""
    store = chunks.stores["train"]
    stored = store.chunks
    ids = search(chunks, "train", stored=stored, cuts=cuts, **settings).ids
    own = store.document_of(np.arange(store.chunks))
    others = store.chunks - np.bincount(own)[own]
    assert ((ids != NO_NEIGHBOR).sum(1) == others).all()
    assert all(len(set(row[row != NO_NEIGHBOR])) == count for row, count in zip(ids, others, strict=True))


def test_the_filter_leaves_the_nearest_of_other_documents(chunks):
    """K survive it although the nearest of all are of the query's own document, and they are the right ones."""
    store = chunks.stores["train"]
    keys = chunks.embeddings["train"].range(0, store.chunks)
    exact = ((keys[:, None] - keys[None]) ** 2).sum(-1)
    own = store.document_of(np.arange(store.chunks))
    exact[own[:, None] == own] = np.inf
    found = search(chunks, "train", stored=4).distances
    np.testing.assert_allclose(found, np.sort(exact, 1)[:, :4], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", list(Method))
def test_missing_neighbors_come_last_and_distances_are_sorted(chunks, method):
    """Peer's bug 16 (Norlund): valid neighbors were put first by an unstable sort, which shuffled the nearest."""
    table = search(chunks, "train", stored=chunks.stores["train"].chunks, method=method)
    ids, distances = table.ids, table.distances
    assert (np.diff((ids == NO_NEIGHBOR).astype(int), axis=1) >= 0).all()
    assert (np.diff(np.where(np.isinf(distances), np.finfo(np.float32).max, distances), axis=1) >= 0).all()
    assert (np.isinf(distances) == (ids == NO_NEIGHBOR)).all()


def test_search_agrees_with_distances_computed_by_hand(chunks):
    """Squared L2 between the embeddings of queries and keys, both made by one function (peer's bug 10)."""
    keys = chunks.embeddings["train"].range(0, chunks.stores["train"].chunks)
    queries = chunks.embeddings["validation"].range(0, chunks.stores["validation"].chunks)
    exact = ((queries[:, None] - keys[None]) ** 2).sum(-1)
    table = search(chunks, "validation", stored=3)
    np.testing.assert_allclose(table.distances, np.sort(exact, 1)[:, :3], rtol=1e-3, atol=1e-4)


def test_a_database_chunk_finds_itself_at_distance_zero(chunks):
    """Peer's bug 10 (lucidrains): queries were embedded with [SEP], keys without, so none was near itself."""
    texts = chunks.stores["train"].texts(np.arange(5))
    again = chunks.embedder.embed(texts).astype(np.float32)
    np.testing.assert_allclose(again, chunks.embeddings["train"].range(0, 5), atol=2e-3)
    found, ids = index(chunks).open().search(again, 1)
    np.testing.assert_allclose(found, 0, atol=1e-4)
    assert chunks.stores["train"].texts(ids[:, 0]) == texts


@pytest.mark.parametrize("cuts", [[7], [3, 9], [1, 2, 3, 20]])
def test_merging_shards_equals_searching_one_index(chunks, cuts):
    whole = search(chunks, "train", stored=6)
    parts = search(chunks, "train", stored=6, cuts=cuts)
    # FAISS forms distances as |x|^2 + |y|^2 - 2 x.y in blocks, so other cuts round differently in the last digits.
    np.testing.assert_allclose(parts.distances, whole.distances, atol=1e-4)
    clear = np.diff(whole.distances, axis=1, prepend=-1, append=np.inf).clip(0)
    clear = (clear[:, :-1] > 1e-3) & (clear[:, 1:] > 1e-3) & (np.arange(6) < 5)
    assert clear.any()
    np.testing.assert_array_equal(parts.ids[clear], whole.ids[clear])


@given(st.lists(st.lists(st.floats(0, 100, width=32), min_size=4, max_size=4), min_size=1, max_size=4))
def test_merge_is_the_sort_of_everything(rows):
    distances = [np.sort(np.array([row], np.float32), 1) for row in rows]
    ids = [np.arange(4)[None] + 10 * number for number in range(len(rows))]
    _, merged = merge_sorted(ids, distances)
    np.testing.assert_array_equal(merged, np.sort(np.concatenate(distances, 1), 1)[:, :4])


def test_neighbor_values_are_cut_at_the_documents_end(chunks):
    """[N, F] is a neighbor and what follows it in its own document; N or F alone are parts of it."""
    store = chunks.stores["train"]
    ids = np.arange(store.chunks)[:, None]
    m = store.chunk_length
    both, lengths = Retrieved(store, ids, Value.neighbor_and_continuation).read(np.arange(store.chunks), 1)
    last = store.document_start[1:] - 1
    assert (lengths[last, 0] <= m).all()
    for chunk in (0, int(last[0]), int(last[-1])):
        document = int(store.document_of(np.array([chunk]))[0])
        begin = int(store.document_start[document]) * m
        tokens = store.read(np.arange(store.chunks)).reshape(-1)[begin : begin + int(store.document_length[document])]
        expected = tokens[chunk * m - begin : chunk * m - begin + 2 * m]
        np.testing.assert_array_equal(both[chunk, 0][: lengths[chunk, 0]], expected)
    neighbor, neighbor_lengths = Retrieved(store, ids, Value.neighbor).read(np.arange(store.chunks), 1)
    continuation, continuation_lengths = Retrieved(store, ids, Value.continuation).read(np.arange(store.chunks), 1)
    np.testing.assert_array_equal(np.concatenate([neighbor, continuation], -1), both)
    np.testing.assert_array_equal(neighbor_lengths + continuation_lengths, lengths)


def test_a_missing_neighbor_has_no_length(chunks):
    """Peer's bug 3: id -1 became the last chunk of the database."""
    store = chunks.stores["train"]
    ids = np.full((store.chunks, 2), NO_NEIGHBOR)
    _, lengths = Retrieved(store, ids, Value.neighbor_and_continuation).read(np.arange(store.chunks), 2)
    assert (lengths == 0).all()
