"""Neighbors for control: what each chunk gets, from whom, and the same however the work is cut."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline import CHUNK_LENGTH, build_chunks

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.errors import ConfigurationError
from retro_lab.retrieval import controls, neighbors
from retro_lab.retrieval.config import Control, DatabaseConfig, EmbedderConfig, IndexConfig, RetrievalConfig, Value
from retro_lab.retrieval.controls import OracleStage, RandomSearcher, ShuffledStage, others
from retro_lab.retrieval.database import Database
from retro_lab.retrieval.neighbors import NO_NEIGHBOR, Neighbors, SearchStage
from retro_lab.retrieval.sequences import Sequences


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("controls"), tiny_bert)


@pytest.fixture(scope="module")
def database(chunks):
    """A database of the training split with a control, found without an embedder where none is needed."""

    def database(control, fraction=1.0, seed=0, stored=12, method="bm25", artifacts=chunks.artifacts):
        return Database(
            artifacts, "random", chunks.stores["train"], chunks.stores["test"],
            DatabaseConfig(fraction=fraction, seed=seed),
            RetrievalConfig(method=method, stored=stored, control=control), IndexConfig(),
            EmbedderConfig(model="there is none"), k=1,
        )  # fmt: skip

    return database


@pytest.mark.parametrize("fraction", [1.0, 0.4])
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("method", ["dense", "hybrid"])
def test_random_neighbors_are_of_other_documents_and_all_different(chunks, database, split, fraction, method):
    """As many as there are, if all are wanted; no embedder is needed for any method."""
    store, train = chunks.stores[split], chunks.stores["train"]
    drawn = database("random", fraction, stored=train.chunks, method=method)
    ids = drawn.neighbors_of(store).ids
    for chunk, row in enumerate(ids):
        found = row[row != NO_NEIGHBOR]
        wanted = np.arange(drawn.chunks)
        if split == "train":
            wanted = wanted[train.document_of(wanted) != store.document_of(np.array(chunk))]
        np.testing.assert_array_equal(np.sort(found), wanted)


def test_random_neighbors_are_drawn_evenly_and_by_the_seed(chunks, database):
    train, validation = chunks.stores["train"], chunks.stores["validation"]
    first, again, other = (database("random", seed=seed, stored=4).neighbors_of(train) for seed in (1, 1, 2))
    assert first.artifact == again.artifact
    assert first.artifact.fingerprint != other.artifact.fingerprint
    assert (first.ids == other.ids).mean() < 0.1
    own = np.arange(train.chunks)[:, None]
    near = np.abs(first.ids - own)
    # The mean distance of two random places is a third of the whole.
    assert near.mean() == pytest.approx(train.chunks / 3, rel=0.15)
    counts = np.bincount(first.ids.ravel(), minlength=train.chunks)
    assert counts.max() <= 4 * 4
    held_out = database("random", seed=1, stored=4).neighbors_of(validation).ids
    assert len(np.unique(held_out)) > 0.5 * min(held_out.size, train.chunks)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_another_chunk_is_of_another_document_and_nobody_is_taken_twice(lengths, seed):
    start = np.concatenate([[0], np.cumsum(lengths)])
    count = int(start[-1])
    store = SimpleNamespace(chunks=count, document_of=lambda chunks: np.searchsorted(start, chunks, side="right") - 1)
    other = others(store, seed)
    np.testing.assert_array_equal(np.sort(other), np.arange(count))
    if count > 1:
        assert (other != np.arange(count)).all()
    if 2 * max(lengths) <= count:
        assert (store.document_of(other) != store.document_of(np.arange(count))).all()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_shuffled_neighbors_are_those_of_another_chunk_without_the_own_document(chunks, database, split):
    store, train = chunks.stores[split], chunks.stores["train"]
    found = database(None).neighbors_of(store)
    shuffled = database("shuffled").neighbors_of(store)
    assert shuffled.artifact.fingerprint != found.artifact.fingerprint
    dropped = 0
    for chunk, other in enumerate(others(store, 0)):
        kept = [
            (one, distance)
            for one, distance in zip(found.ids[other].tolist(), found.distances[other].tolist(), strict=True)
            if one != NO_NEIGHBOR and (split != "train" or train.document_of(one) != train.document_of(chunk))
        ]
        dropped += (found.ids[other] != NO_NEIGHBOR).sum() - len(kept)
        present = shuffled.ids[chunk] != NO_NEIGHBOR
        pairs = zip(shuffled.ids[chunk][present].tolist(), shuffled.distances[chunk][present].tolist(), strict=True)
        assert list(pairs) == kept
        assert (shuffled.ids[chunk][len(kept) :] == NO_NEIGHBOR).all()
    assert (dropped > 0) == (split == "train")
    orders = [database("shuffled", seed=seed).neighbors_of(store).ids for seed in (0, 1)]
    assert (orders[0] != orders[1]).any()


@pytest.mark.parametrize("values", [Value.neighbor_and_continuation, Value.continuation])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_oracle_is_the_text_to_be_predicted(chunks, database, split, values):
    """Also where the text is the database's own: no other neighbor may be of the sequence that retrieves it."""
    store, length = chunks.stores[split], 4
    oracle = database("oracle", fraction=0.2)
    first = np.arange(0, store.chunks - length, length)
    batch = Sequences(store, oracle.retrieved_by(store, values), length * CHUNK_LENGTH).read(first, 2)
    whole = store.read(first, length + 1).reshape(len(first), length + 1, CHUNK_LENGTH)
    parts = [whole[:, :-1], whole[:, 1:]] if values is Value.neighbor_and_continuation else [whole[:, 1:]]
    places = first[:, None] + np.arange(length)
    real = store.real_tokens(places, 2) - (2 - len(parts)) * CHUNK_LENGTH
    np.testing.assert_array_equal(batch["neighbor_lengths"][..., 0], np.maximum(real, 0))
    assert (batch["neighbor_lengths"][..., 1] == 0).all()  # nothing but the oracle
    inside = np.arange(len(parts) * CHUNK_LENGTH) < batch["neighbor_lengths"][..., 0, None].numpy()
    read = batch["neighbors"][:, :, 0].numpy()
    assert (read[inside] == np.concatenate(parts, -1)[inside]).all()
    assert inside.any(-1).mean() > 0.5
    hidden = Sequences(store, database(None).retrieved_by(store, values), length * CHUNK_LENGTH)
    assert hidden._from_itself == (split == "train")


def test_an_oracle_without_a_continuation_is_refused():
    with pytest.raises(ConfigurationError, match=r"retrieval\.control=oracle .* retrieval\.value=neighbor leaves out"):
        RetrievalConfig(control=Control.oracle, value=Value.neighbor)


def test_scores_tell_controls_apart_and_overlaps_are_of_what_is_retrieved(chunks, database):
    store = chunks.stores["validation"]
    made = {control: database(control) for control in (None, *Control)}
    said = {control: one.description for control, one in made.items()}
    size = f"{chunks.stores['train'].chunks:,} chunks of random"
    assert said == {
        None: f"{size} (BM25)",
        Control.random: f"{size} (random neighbors)",
        Control.shuffled: f"{size} (BM25, shuffled neighbors)",
        Control.oracle: "the text to be predicted (oracle neighbors)",
    }
    fingerprints = {one.neighbors_of(store).artifact.fingerprint for one in made.values()}
    assert len(fingerprints) == len(made)
    overlap = {control: one.overlaps_of(store) for control, one in made.items()}
    assert (overlap[Control.oracle].values == 1).all()
    for control in (Control.random, Control.shuffled):
        assert overlap[control].facts.mean < overlap[None].facts.mean


@pytest.mark.parametrize("size", ["exactly full", 1, 7])
def test_how_the_work_is_cut_changes_no_control(chunks, database, tmp_path, monkeypatch, size):
    store, train = chunks.stores["train"], chunks.stores["train"]
    found = database(None).neighbors_of(store)

    def tables(artifacts, query_batch):
        return [
            Neighbors(artifacts.build(OracleStage(store, 3))).ids,
            Neighbors(artifacts.build(ShuffledStage(store, train, found, 5))).ids,
            *_drawn(artifacts.build(SearchStage(RandomSearcher(store, train, 30, 5), store, train, 9, query_batch))),
        ]

    whole = tables(chunks.artifacts, 4096)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    for module in (neighbors, controls):
        monkeypatch.setattr(module, "SHARD_QUERIES", store.chunks if size == "exactly full" else size)
    for one, other in zip(whole, tables(ArtifactStore(tmp_path), 3), strict=True):
        np.testing.assert_array_equal(one, other)


def _drawn(search):
    return [np.concatenate([search.array(name, shard) for shard in range(search.shards)]) for name in ("ids.npy",)]
