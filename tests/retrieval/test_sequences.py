"""Batches for training and windows for evaluation: what is read, what counts, and that nothing is missed or doubled."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipeline import CHUNK_LENGTH, build_chunks, search
from torch.utils.data import DataLoader

from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.score import HeldOutScore
from retro_lab.evaluation.windows import RankWindows, Windows
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.sequences import Retrieved, Sequences, documents_of, to_int64
from retro_lab.training.batches import TrainingBatches


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("sequences"), tiny_bert)


@pytest.fixture(scope="module")
def sequences(chunks):
    ids = search(chunks, "train", stored=4).ids
    return Sequences(
        chunks.stores["train"],
        Retrieved(chunks.stores["train"], ids, Value.neighbor_and_continuation),
        4 * CHUNK_LENGTH,
    )


def test_targets_are_the_next_tokens(sequences):
    batch = sequences.read(np.array([0, 5]), 2)
    assert batch["tokens"].shape == (2, 4 * CHUNK_LENGTH)
    assert (batch["tokens"][:, 1:] == batch["targets"][:, :-1]).all()
    following = sequences.store.read(np.array([4, 9]))[:, 0]
    assert (batch["targets"][:, -1].numpy() == following).all()
    assert batch["neighbors"].shape == (2, 4, 2, 2 * CHUNK_LENGTH)


def test_mask_covers_every_text_token_once_over_the_whole_corpus(sequences):
    """Neither document markers nor padding count, and no text token is left out but the corpus's first."""
    store = sequences.store
    usable = store.chunks // 4
    counted = sum(int(sequences.read(np.array([4 * number]), 0)["mask"].sum()) for number in range(usable))
    last = usable * 4
    text = int((store.document_length - 1).sum())
    after = sum(int(store.real_tokens(np.array([chunk]))[0]) for chunk in range(last, store.chunks))
    assert text - after - usable <= counted <= text


def test_lengths_and_starts_follow_from_the_documents(sequences):
    """The table that reading looks lengths up in, against the documents themselves; past the end there is nothing."""
    store = sequences.store
    chunks = np.arange(store.chunks + 3)
    document = np.minimum(store.document_of(chunks), store.documents - 1)
    left = store.document_length[document] - (chunks - store.document_start[document]) * CHUNK_LENGTH
    left[chunks >= store.chunks] = 0
    for count in (1, 2, 5):
        np.testing.assert_array_equal(store.real_tokens(chunks, count), np.clip(left, 0, count * CHUNK_LENGTH))
    first = np.isin(chunks, store.document_start[:-1])[: store.chunks]
    np.testing.assert_array_equal(store.starts_document(chunks[: store.chunks]), first)


class Whole:
    """Stands for a token store: tokens are their own places, and all of it is one document."""

    def __init__(self, chunks, chunk_length=4):
        self.chunks, self.chunk_length = chunks, chunk_length

    def read(self, chunks, count=1):
        places = chunks[..., None] * self.chunk_length + np.arange(count * self.chunk_length)
        return places.reshape(*chunks.shape, count * self.chunk_length)

    def real_tokens(self, chunks, count=1):
        return np.full(chunks.shape, count * self.chunk_length)


@pytest.mark.parametrize("values", Value)
@given(data=st.data())
def test_neighbors_of_a_range_are_passed_over_and_the_next_move_up(values, data):
    """Against a loop over all that is stored."""
    count, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    row = st.lists(st.integers(-1, count - 1), min_size=6, max_size=6).map(lambda ids: sorted(ids, key=lambda i: i < 0))
    ids = np.array(data.draw(st.lists(row, min_size=count, max_size=count)))
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count))
    chunks = np.arange(count).reshape(1, -1)
    retrieved = Retrieved(Whole(count), ids, values)
    tokens, lengths = retrieved.read(chunks, k, (np.array([[first]]), np.array([[last]])))
    for chunk in range(count):
        kept = [i for i in ids[chunk] if i >= 0 and not set(range(i, i + retrieved.span)) & set(range(first, last + 1))]
        expected = Whole(count).read(np.array(kept[:k], int), retrieved.span)
        if values is Value.continuation:
            expected = expected[..., 4:]
        assert (lengths[0, chunk] > 0).tolist() == [place < len(kept) for place in range(k)]
        np.testing.assert_array_equal(tokens[0, chunk, : len(kept[:k])], expected)


@pytest.mark.parametrize("values", Value)
def test_no_sequence_retrieves_what_it_holds_or_predicts(chunks, values):
    """Sequences hold several documents, of which each may be near another; no token of theirs comes back to them."""
    store = chunks.stores["train"]
    ids = search(chunks, "train", stored=40).ids
    own_ids = {}
    for length in (8, 16, 32):
        sequences = Sequences(store, Retrieved(store, ids, values), length * CHUNK_LENGTH)
        first = np.arange(0, store.chunks - length + 1, length)
        own = (first[:, None], first[:, None] + length)
        near = ids[: len(first) * length].reshape(len(first), length, -1)[..., :2]
        own_ids[length] = ((near >= first[:, None, None]) & (near <= first[:, None, None] + length)).sum()
        batch = sequences.read(first, 2)
        tokens, lengths = Retrieved(store, ids, values).read(first[:, None] + np.arange(length), 2, own)
        np.testing.assert_array_equal(batch["neighbors"], tokens)
        np.testing.assert_array_equal(batch["neighbor_lengths"], lengths)
        places = Retrieved(Whole(store.chunks, CHUNK_LENGTH), ids, values)
        read, _ = places.read(first[:, None] + np.arange(length), 2, own)
        inside = (read >= first[:, None, None, None] * CHUNK_LENGTH) & (
            read <= (first[:, None, None, None] + length) * CHUNK_LENGTH
        )
        assert not (inside & (lengths > 0)[..., None]).any()
    assert max(own_ids.values()) > 0, "the corpus has no such neighbors, so nothing was tested"


def test_held_out_sequences_keep_all_neighbors(chunks):
    """Their chunks have the numbers of others in the database."""
    store, database = chunks.stores["validation"], chunks.stores["train"]
    retrieved = Retrieved(database, search(chunks, "validation", stored=4).ids, Value.neighbor)
    batch = Sequences(store, retrieved, 4 * CHUNK_LENGTH).read(np.array([0]), 4)
    tokens, _ = retrieved.read(np.arange(4)[None], 4)
    np.testing.assert_array_equal(batch["neighbors"], tokens)


def test_ids_keep_the_type_of_the_store_until_they_are_widened(sequences):
    batch = sequences.read(np.array([0, 5]), 2)
    assert batch["tokens"].dtype == batch["neighbors"].dtype == torch.uint16
    wide = to_int64(batch)
    for name in ("tokens", "targets", "neighbors"):
        assert wide[name].dtype == torch.int64
        np.testing.assert_array_equal(wide[name].numpy(), batch[name].numpy())


def test_documents_are_read_only_where_they_are_asked_for(chunks, sequences):
    first = np.arange(0, sequences.store.chunks, 4)
    assert documents_of(sequences.read(first, 0)) is None
    batch = Sequences(chunks.stores["train"], None, 4 * CHUNK_LENGTH, with_documents=True).read(first, 0)
    documents = documents_of(batch)
    assert documents.shape == batch["tokens"].shape
    # One document ends and the next begins at its marker, and padding is of the document that it fills up.
    marker = sequences.store.document_start[:-1] * CHUNK_LENGTH
    expected = np.searchsorted(marker, np.arange(len(first) * 4 * CHUNK_LENGTH), side="right") - 1
    inside = np.arange(expected.size) < sequences.store.chunks * CHUNK_LENGTH
    np.testing.assert_array_equal(documents.flatten().numpy()[inside], expected[inside])
    assert (documents.flatten().numpy()[~inside] == sequences.store.documents).all()


def test_sequence_length_must_be_whole_chunks(chunks):
    with pytest.raises(ConfigurationError, match=r"data\.sequence_length=12 is not a multiple"):
        Sequences(chunks.stores["train"], None, 12)


def test_reading_changes_no_file(chunks, sequences):
    """Peer's bug 13: reading an item enlarged the data on disk."""
    artifact = chunks.stores["train"].artifact
    sequences.read(np.array([chunks.stores["train"].chunks - 1]), 2)
    assert artifact.manifest.damaged_files(artifact.folder) == []


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 3))
def test_training_order_is_a_permutation_for_any_number_of_ranks(sequences, world, batch_size, seed):
    """Ranks together read exactly what one rank would, and every sequence once an epoch."""
    alone = TrainingBatches(sequences, world * batch_size, 0, seed)
    ranks = [TrainingBatches(sequences, batch_size, 0, seed, rank=rank, world=world) for rank in range(world)]
    read = [[piece["batch"]["tokens"] for piece in islice(rank, 3)] for rank in ranks]
    for pieces, whole in zip(zip(*read, strict=True), islice(alone, 3), strict=True):
        assert torch.equal(torch.cat(pieces), whole["batch"]["tokens"])
    one = TrainingBatches(sequences, 1, 0, seed)
    epoch = one.global_batches(np.arange(one.sequence_count))
    np.testing.assert_array_equal(np.sort(epoch, axis=None), 4 * np.arange(one.sequence_count))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resuming_gives_the_same_next_batches_with_any_number_of_workers(sequences, workers):
    uninterrupted = list(islice(iter(TrainingBatches(sequences, 2, 1, 3, accumulated=3)), 15))
    resumed = TrainingBatches(sequences, 2, 1, 3, accumulated=3, start_step=2)
    loader = DataLoader(resumed, batch_size=None, num_workers=workers)
    for piece, expected in zip(islice(iter(loader), 9), uninterrupted[6:], strict=True):
        assert piece["text_tokens"] == expected["text_tokens"]
        assert all(torch.equal(piece["batch"][name], expected["batch"][name]) for name in expected["batch"])


def dropped(sequences, count, **settings):
    """Which of the first sequences of the stream see no neighbors, and the batches that say so."""
    pieces = [piece["batch"] for piece in islice(TrainingBatches(sequences, k=2, seed=3, **settings), count)]
    alone = torch.cat([(piece["neighbor_lengths"] == 0).flatten(1).all(1) for piece in pieces])
    return alone, pieces


def test_a_share_of_the_sequences_sees_no_neighbors_and_nothing_else_changes(sequences):
    whole, pieces = dropped(sequences, 500, piece_size=8)
    assert not whole.any()  # every sequence of this text has neighbors
    alone, changed = dropped(sequences, 500, piece_size=8, neighbor_dropout=0.25)
    deviation = (0.25 * 0.75 / len(alone)) ** 0.5
    assert abs(float(alone.float().mean()) - 0.25) < 4 * deviation
    for piece, expected, rows in zip(changed, pieces, alone.split(8), strict=True):
        for name in expected:
            same = slice(None) if name != "neighbor_lengths" else ~rows
            assert torch.equal(piece[name][same], expected[name][same]), name
    # Other epochs leave out others: a sequence is seen with and without neighbors.
    per_epoch = sequences.store.chunks // 4
    order = TrainingBatches(sequences, 8, 2, 3).global_batches(np.arange(500)).ravel()
    shares = [float(alone[order == first].float().mean()) for first in np.unique(order)]
    assert len(shares) == per_epoch
    assert 0 < min(shares) < max(shares) < 1


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 5))
def test_who_sees_no_neighbors_does_not_depend_on_how_the_batch_is_cut(sequences, world, accumulated, start_step):
    whole, _ = dropped(sequences, 4, piece_size=36, neighbor_dropout=0.5, start_step=start_step)
    cut = {"piece_size": 36 // world // accumulated, "accumulated": accumulated, "world": world}
    ranks = [
        dropped(sequences, 4 * accumulated, rank=rank, neighbor_dropout=0.5, start_step=start_step, **cut)[0]
        for rank in range(world)
    ]
    pieces = torch.stack([rank.reshape(4, accumulated, -1) for rank in ranks], dim=2)
    assert torch.equal(pieces.flatten(), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_who_sees_no_neighbors_is_the_same_after_resuming(sequences, workers):
    whole, _ = dropped(sequences, 12, piece_size=4, neighbor_dropout=0.5)
    resumed = TrainingBatches(sequences, 4, 2, 3, neighbor_dropout=0.5, start_step=5)
    loader = DataLoader(resumed, batch_size=None, num_workers=workers)
    lengths = [piece["batch"]["neighbor_lengths"] for piece in islice(iter(loader), 7)]
    assert torch.equal((torch.cat(lengths) == 0).flatten(1).all(1), whole[20:])
    assert 0 < whole.float().mean() < 1


def test_a_baseline_has_no_neighbors_to_drop(sequences):
    batch = next(iter(TrainingBatches(sequences, 4, 0, 3, neighbor_dropout=0.5)))["batch"]
    expected = next(iter(TrainingBatches(sequences, 4, 0, 3)))["batch"]
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


@given(st.integers(1, 3), st.integers(0, 9), st.integers(1, 3))
def test_the_first_batches_are_repeated_wherever_a_run_resumes(sequences, repeated, start_step, accumulated):
    shape = {"accumulated": accumulated, "world": 2, "rank": 1}
    first = list(islice(TrainingBatches(sequences, 2, 0, 3, **shape), repeated * accumulated))
    resumed = TrainingBatches(sequences, 2, 0, 3, start_step=start_step, repeated=repeated, **shape)
    for number, piece in enumerate(islice(resumed, 7), start_step * accumulated):
        expected = first[number % len(first)]["batch"]
        assert torch.equal(piece["batch"]["tokens"], expected["tokens"])


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_each_piece_knows_the_text_tokens_of_its_global_batch(sequences, accumulated, world, piece_size):
    shape = {"accumulated": accumulated, "world": world}
    ranks = [TrainingBatches(sequences, piece_size, 0, 0, rank=rank, **shape) for rank in range(world)]
    pieces = [piece for rank in ranks for piece in islice(rank, accumulated)]
    counted = sum(int(piece["batch"]["mask"].sum()) for piece in pieces)
    assert {int(piece["text_tokens"]) for piece in pieces} == {counted}


@given(st.sampled_from([1, 2, 3, 4]), st.integers(1, 5), st.integers(1, 4))
def test_all_ranks_together_score_every_text_token_of_whole_documents_once(chunks, stride, batch_size, world):
    store = chunks.stores["validation"]
    windows = Windows(Sequences(store, None, 4 * CHUNK_LENGTH), stride * CHUNK_LENGTH, batch_size, 0, float("inf"))
    ranks = [RankWindows(windows, rank, world) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1  # in step, for what they compute together
    batches = [rank[index] for rank in ranks for index in range(len(rank))]
    assert sum(int(batch["batch"]["mask"].sum()) for batch in batches) == int((store.document_length - 1).sum())
    assert sum(int(batch["bytes"]) for batch in batches) == store.facts.bytes
    assert sum(int(batch["documents"]) for batch in batches) == store.documents

    score = HeldOutScore(CHUNK_LENGTH)
    for batch in batches:
        mask = batch["batch"]["mask"]
        # Any numbers that are the same whichever window scores a token, in place of what a model needs for it.
        nats = (batch["batch"]["targets"].double() + 1).log() * mask
        score.update(nats, mask, batch["windows"], batch["bytes"], batch["documents"])
    overlap = np.linspace(0, 1, store.chunks, dtype=np.float32)
    shares = windows.chunk_scores(score.compute(), overlap)
    assert shares.documents == store.documents
    assert np.array_equal(shares.overlap, overlap)
    nats, tokens = np.zeros(store.chunks), np.zeros(store.chunks)
    for document, length in enumerate(store.document_length):
        first = int(store.document_start[document])
        text = store.read(np.array([first]), -(-length // CHUNK_LENGTH))[0]
        for place in range(1, length):  # the marker is never predicted
            nats[first + place // CHUNK_LENGTH] += np.log(float(text[place]) + 1)
            tokens[first + place // CHUNK_LENGTH] += 1
    assert shares.tokens.tolist() == tokens.tolist()
    assert shares.nats == pytest.approx(nats, rel=1e-13)
    whole = shares.by_document()
    assert whole.bytes.tolist() == store.document_bytes.tolist()
    assert whole.tokens.tolist() == (store.document_length - 1).tolist()
    assert whole.nats.sum() == pytest.approx(nats.sum(), rel=1e-13)
    assert np.array_equal(shares.document, store.document_of(np.arange(store.chunks)))


def test_a_chunk_has_the_bytes_of_its_own_tokens(chunks):
    """A byte-level tokenizer writes a byte of text as a character of a token: the bytes are counted in the names."""
    store = chunks.stores["validation"]
    names = [store.tokenizer.tokenizer.id_to_token(i) for i in range(store.tokenizer.vocabulary_size)]
    every = np.arange(store.chunks)
    rows = zip(store.read(every), store.real_tokens(every), strict=True)
    marker = store.tokenizer.document_marker
    expected = [sum(len(names[token]) for token in row[:real] if token != marker) for row, real in rows]
    assert store.chunk_bytes(store.documents).tolist() == expected
    first = int(store.document_start[1])
    assert store.chunk_bytes(1).tolist() == expected[:first]


def test_fewer_tokens_take_the_first_documents(chunks):
    store = chunks.stores["validation"]
    some = Windows(Sequences(store, None, 4 * CHUNK_LENGTH), CHUNK_LENGTH, 4, 0, float(store.document_length[0]))
    assert some.documents == 1


def test_a_stride_that_leaves_gaps_is_refused(chunks):
    with pytest.raises(ConfigurationError, match=r"evaluation\.stride"):
        Windows(Sequences(chunks.stores["validation"], None, 2 * CHUNK_LENGTH), 3 * CHUNK_LENGTH, 4, 0, 1e9)
