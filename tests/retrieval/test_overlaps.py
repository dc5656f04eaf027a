"""How much of a chunk its neighbors have in one piece (Borgeaud et al. 2022, Sec. 2.6)."""

import numpy as np
import pytest
from pipeline import CHUNK_LENGTH, RandomSentences, build_chunks, search
from test_substrings import longest_run

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.documents import Document
from retro_lab.retrieval import overlaps
from retro_lab.retrieval.config import DatabaseConfig, EmbedderConfig, IndexConfig, RetrievalConfig, Value
from retro_lab.retrieval.database import Database
from retro_lab.retrieval.neighbors import NO_NEIGHBOR
from retro_lab.retrieval.overlaps import Overlaps, OverlapsStage, chunk_overlaps
from retro_lab.retrieval.sequences import Retrieved


class Leaking(RandomSentences):
    """Documents of random words, of which one for validation is also one to train on, and another begins as one."""

    def read(self, part):
        documents = list(super().read(part))
        yield from documents
        held_out = [document for split, document in documents if split == "validation"]
        for number, document in enumerate(held_out[:2]):
            text = document.text if number == 0 else " ".join(document.text.split()[:20])
            yield "train", Document(f"copy {number}", "random", text)


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("overlaps"), tiny_bert, Leaking())


@pytest.fixture(scope="module")
def overlaps_of(chunks):
    def overlaps_of(split, stored=12, **settings):
        neighbors = search(chunks, split, stored, **settings)
        stage = OverlapsStage(chunks.stores[split], chunks.stores["train"], neighbors)
        return neighbors, Overlaps(chunks.artifacts.build(stage))

    return overlaps_of


def text(store, chunk, count=1):
    """Tokens of a chunk and of those that follow it in its document, without the marker, from the documents alone."""
    document = int(np.searchsorted(store.document_start, chunk, side="right")) - 1
    first = int(store.document_start[document])
    tokens = store.read(np.array([first]), int(store.document_start[document + 1]) - first)[0]
    tokens = tokens[: store.document_length[document]]
    start = (chunk - first) * store.chunk_length
    tokens = tokens[start : start + count * store.chunk_length]
    return tokens[tokens != store.tokenizer.document_marker].tolist()


def by_hand(store, database, ids):
    """r(C) of each chunk from a dynamic program."""
    values = []
    for chunk, found in enumerate(ids):
        own = text(store, chunk)
        runs = [longest_run(own, text(database, one, 2)) for one in found[:10].tolist() if one != NO_NEIGHBOR]
        values.append(max(runs, default=0) / max(1, len(own)))
    return np.array(values, np.float32)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("method", ["dense", "bm25"])
def test_overlaps_of_real_chunks_agree_with_a_dynamic_program(chunks, overlaps_of, split, method):
    neighbors, measured = overlaps_of(split, method=method)
    expected = by_hand(chunks.stores[split], chunks.stores["train"], neighbors.ids)
    np.testing.assert_array_equal(measured.values, expected)
    assert measured.values.dtype == np.float32
    facts = measured.facts
    assert (facts.queries, facts.compared) == (len(expected), 10)
    assert facts.mean == pytest.approx(expected.mean(dtype=float))
    assert facts.at_least == {name: (expected >= float(name)).mean() for name in ("0.125", "0.25", "0.5", "0.75", "1")}
    assert 0 < facts.at_least["1"] < facts.at_least["0.125"]


def test_all_chunks_of_a_copied_document_overlap_whole(chunks, overlaps_of):
    """Its first chunk, with the marker, and its last, with padding, too."""
    store, train = chunks.stores["validation"], chunks.stores["train"]
    texts = [text(train, start, train.chunks) for start in train.document_start[:-1].tolist()]
    starts = store.document_start[:-1].tolist()
    copied = [n for n, start in enumerate(starts) if text(store, start, store.chunks) in texts]
    values = overlaps_of("validation", method="bm25")[1].values
    for document in copied:
        first, last = store.document_start[document : document + 2]
        assert last - first > 2
        assert store.document_length[document] % CHUNK_LENGTH
        assert (values[first:last] == 1).all()
    assert copied


def test_fewer_stored_neighbors_are_all_that_is_compared(chunks, overlaps_of):
    neighbors, measured = overlaps_of("validation", stored=3)
    assert measured.facts.compared == 3
    np.testing.assert_array_equal(
        measured.values, by_hand(chunks.stores["validation"], chunks.stores["train"], neighbors.ids)
    )


def test_a_chunk_without_neighbors_has_no_overlap(chunks):
    store, train = chunks.stores["validation"], chunks.stores["train"]
    ids = np.full((store.chunks, 10), NO_NEIGHBOR)
    ids[1, 0] = 0
    values = chunk_overlaps(store, Retrieved(train, ids, Value.neighbor_and_continuation), np.arange(store.chunks), 10)
    assert values[1] > 0
    assert (np.delete(values, 1) == 0).all()
    none = chunk_overlaps(store, Retrieved(train, ids[:, :0], Value.neighbor), np.arange(store.chunks), 10)
    assert (none == 0).all()


def test_a_database_compares_with_its_own_neighbors_and_once(chunks, overlaps_of):
    """Chunks overlap less with the neighbors that a smaller database has."""
    store, train = chunks.stores["validation"], chunks.stores["train"]

    def database(fraction):
        return Database(
            chunks.artifacts, "random", train, chunks.stores["test"],
            DatabaseConfig(fraction=fraction), RetrievalConfig(method="bm25", stored=12), IndexConfig(),
            EmbedderConfig(model="none"), k=1,
        )  # fmt: skip

    whole = database(1.0)
    measured = whole.overlaps_of(store)
    assert whole.overlaps_of(store) is measured
    assert measured.artifact == overlaps_of("validation", method="bm25")[1].artifact
    assert database(1.0).overlaps_of(store).artifact == measured.artifact
    small = database(0.1)
    less = small.overlaps_of(store)
    np.testing.assert_array_equal(less.values, by_hand(store, train, small.neighbors_of(store).ids))
    assert less.facts.mean < measured.facts.mean


@pytest.mark.parametrize("shard", ["exactly full", "one more", "one less", 1, 7])
def test_how_the_work_is_cut_changes_nothing(chunks, overlaps_of, tmp_path, monkeypatch, shard):
    neighbors, whole = overlaps_of("validation")
    store = chunks.stores["validation"]
    size = {"exactly full": store.chunks, "one more": store.chunks + 1, "one less": store.chunks - 1}.get(shard, shard)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    for module in ("neighbors", "overlaps"):
        monkeypatch.setattr(f"retro_lab.retrieval.{module}.SHARD_QUERIES", size)
    monkeypatch.setattr(overlaps, "READ_AT_ONCE", max(1, size - 1))
    stage = OverlapsStage(store, chunks.stores["train"], neighbors)
    assert sum(stage.shard_sizes()) == store.chunks
    cut = Overlaps(ArtifactStore(tmp_path).build(stage))
    np.testing.assert_array_equal(cut.values, whole.values)
    assert cut.facts.at_least == whole.facts.at_least
    assert cut.facts.mean == pytest.approx(whole.facts.mean)
