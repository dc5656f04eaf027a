"""Texts in no store: scored as a loop over the model does it, and as our own evaluation does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline import CHUNK_LENGTH, SMALL_SIZE, bm25_database, build_chunks

from retro_lab.evaluation.reader import Scored, TextReader
from retro_lab.evaluation.windows import Windows
from retro_lab.model.config import ModelConfig
from retro_lab.model.retro import RetroModel
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.sequences import Sequences, documents_of, neighbors_of, to_int64

LENGTH, STRIDE, K = 3 * CHUNK_LENGTH, CHUNK_LENGTH, 2


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("reader"), tiny_bert)


@pytest.fixture(scope="module")
def database(chunks):
    return bm25_database(chunks, K)


@pytest.fixture(scope="module")
def models(chunks):
    """A RETRO whose neighbors matter, with document masks and without."""
    built = {}
    for masks in (False, True):
        torch.manual_seed(0)
        config = ModelConfig(chunk_length=CHUNK_LENGTH, document_masks=masks, init_std=0.3)
        built[masks] = RetroModel(SMALL_SIZE, config, chunks.stores["train"].tokenizer.vocabulary_size).eval()
    return built


@pytest.fixture(scope="module")
def live(database):
    return database.live(K)


@pytest.fixture
def reader(chunks, live, models):
    def reader(k, masks=False, batch_size=4, value=Value.neighbor_and_continuation):
        return TextReader(
            models[masks], live if k else None, value, k=k,
            marker=chunks.stores["train"].tokenizer.document_marker, length=LENGTH, stride=STRIDE,
            batch_size=batch_size,
        )  # fmt: skip

    return reader


@torch.no_grad()
def naive_logits(model, live, tokens, k):
    """The logits after some tokens, [V]: each chunk retrieves on its own, and nothing is padded."""
    neighbors = lengths = None
    complete = tokens[: len(tokens) // CHUNK_LENGTH * CHUNK_LENGTH].reshape(-1, CHUNK_LENGTH)
    if k and len(complete):
        read = [live.read(live.search([chunk])[0], k, Value.neighbor_and_continuation) for chunk in complete]
        neighbors, lengths = (
            torch.from_numpy(np.concatenate(part).astype(np.int64))[None] for part in zip(*read, strict=True)
        )
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    documents = torch.zeros_like(ids) if model.document_masks else None
    return model.logits(model(ids, neighbors, lengths, documents))[0, -1]


def naive_cut(tokens):
    """Leave out chunks on the left until what is left fits into a sequence."""
    while len(tokens) > LENGTH:
        tokens = tokens[CHUNK_LENGTH:]
    return tokens


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("k", [0, 1, K])
def test_documents_score_as_in_our_own_evaluation(chunks, database, models, reader, k, masks):
    """With live neighbors here, and stored ones there."""
    store, model = chunks.stores["validation"], models[masks]
    sequences = Sequences(
        store, database.retrieved_by(store, Value.neighbor_and_continuation), LENGTH, with_documents=masks
    )
    windows = Windows(sequences, STRIDE, 4, K, float("inf"))
    expected = np.zeros(store.documents)
    for number in range(len(windows)):
        read = windows[number]
        batch = to_int64(read["batch"])
        with torch.no_grad():
            nats = model.token_losses(batch["tokens"], batch["targets"], *neighbors_of(batch, k), documents_of(batch))
        rows = (nats * batch["mask"]).sum(1).double().numpy()
        np.add.at(expected, windows._document[read["windows"].numpy()], rows)
    texts = [
        Scored(store.read(np.arange(store.document_start[n], store.document_start[n + 1])).ravel()[:length], 1)
        for n, length in enumerate(store.document_length)
    ]
    assert max(len(text.tokens) for text in texts) > 3 * LENGTH
    found = reader(k, masks).likelihoods(texts, greedy=False)
    np.testing.assert_allclose([likelihood.nats for likelihood in found], expected, rtol=1e-4)


def test_what_is_retrieved_matters(chunks, reader):
    tokens = chunks.stores["validation"].read(np.arange(3)).ravel()
    levels = [reader(k).likelihoods([Scored(tokens, 1)])[0].nats for k in (0, 1, K)]
    assert len({round(level, 2) for level in levels}) == 3


@given(st.data())
@settings(max_examples=12)
def test_a_continuation_scores_as_a_loop_over_the_model_does(chunks, live, models, reader, data):
    """However long, and whatever it is read together with."""
    k = data.draw(st.sampled_from([0, K]))
    marker = chunks.stores["train"].tokenizer.document_marker
    draw = np.random.default_rng(data.draw(st.integers(0, 100)))
    texts = []
    for _ in range(data.draw(st.integers(1, 5))):
        count = data.draw(st.integers(2, LENGTH + 20))
        tokens = np.concatenate([[marker], draw.integers(1, 299, count - 1)])
        # What does not fit into one sequence is scored in windows, which the evaluation's test has.
        texts.append(Scored(tokens, data.draw(st.integers(max(1, count - LENGTH // 2), count))))
    found = reader(k, batch_size=data.draw(st.integers(1, 3))).likelihoods(texts)
    for text, likelihood in zip(texts, found, strict=True):
        nats, greedy = 0.0, True
        start = len(text.tokens[:-1]) - len(naive_cut(text.tokens[:-1]))
        for place in range(text.first, len(text.tokens)):
            logits = naive_logits(models[False], live, text.tokens[start:place], k)
            nats -= float(logits.log_softmax(-1)[text.tokens[place]])
            greedy &= int(logits.argmax()) == text.tokens[place]
        assert likelihood.nats == pytest.approx(nats, rel=1e-4, abs=1e-4)
        assert likelihood.greedy == greedy


@pytest.mark.parametrize("k", [0, K])
def test_a_continuation_longer_than_a_sequence_is_scored_whole(chunks, reader, k):
    """Its parts, each scored with the windows of the whole, add up to it."""
    tokens = np.concatenate([chunks.stores["validation"].read(np.arange(12)).ravel()])
    first = 5
    [whole, rest] = reader(k).likelihoods([Scored(tokens, 1), Scored(tokens, first)])
    [head] = reader(k).likelihoods([Scored(tokens[:first], 1)])
    assert whole.nats == pytest.approx(head.nats + rest.nats, rel=1e-5)


def test_nothing_scored_is_certain(reader):
    [found] = reader(K).likelihoods([Scored(np.array([5, 6]), 2)])
    assert found == (0.0, True)
    assert reader(0).likelihoods([]) == []
