"""The losses of a document's tokens are those that its score is made of."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from model_builders import small_choices, small_size
from pipeline import CHUNK_LENGTH, RandomSentences, build_chunks, search

from retro_lab.evaluation.inspected import inspected_document
from retro_lab.evaluation.scoring import ScoredData, ScoringModule
from retro_lab.evaluation.token_nats import document_nats
from retro_lab.evaluation.windows import Windows
from retro_lab.model.retro import RetroModel
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.sequences import Retrieved, Sequences

K = 2


def trainer() -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path):
    return build_chunks(tmp_path_factory.mktemp("tokens"), tiny_bert, RandomSentences(documents=40, longest=60))


def test_the_losses_of_its_tokens_add_up_to_a_documents_score(chunks) -> None:
    store, source = chunks.stores["validation"], chunks.stores["train"]
    table = search(chunks, "validation", stored=3)
    retrieved = Retrieved(source, table.ids, Value.neighbor_and_continuation)
    windows = Windows(Sequences(store, retrieved, 4 * CHUNK_LENGTH), CHUNK_LENGTH, 3, K, float("inf"))
    torch.manual_seed(0)
    model = RetroModel(small_size(), small_choices(chunk_length=CHUNK_LENGTH), store.tokenizer.vocabulary_size)
    module = ScoringModule(model.eval(), [0, K])
    trainer().validate(module, datamodule=ScoredData(windows), verbose=False)
    scores = {k: windows.chunk_scores(score.compute()).by_document() for k, score in module.measured()}
    assert any(len(windows.of_document(document)) > 3 for document in range(store.documents))
    for document in range(store.documents):
        nats = document_nats(trainer(), model, windows, document, [0, K])
        for k, values in nats.items():
            scored = ~np.isnan(values)
            assert len(values) == store.document_length[document]
            assert not scored[0]  # the marker
            assert scored.sum() == scores[k].tokens[document]
            assert values[scored].sum() == pytest.approx(scores[k].nats[document], rel=1e-5)
        assert not np.array_equal(nats[0][1:], nats[K][1:]) or len(nats[0]) <= CHUNK_LENGTH
        _check_what_is_shown(store, retrieved, table.distances, document, nats)


def _check_what_is_shown(store, retrieved, distances, document, nats) -> None:
    shown = inspected_document(store, retrieved, distances, document, nats[0], nats[K], K, 500)
    first, end = store.document_start[document : document + 2]
    assert shown.total == len(shown.chunks) == end - first
    text = "".join(token.text for chunk in shown.chunks for token in chunk.tokens)
    assert [text] == store.texts(np.array([first]), shown.total)
    assert sum(chunk.nats[1] for chunk in shown.chunks) == pytest.approx(np.nansum(nats[K]))
    assert shown.on == pytest.approx(np.nansum(nats[K]) / np.log(2) / store.document_bytes[document])
    assert shown.chunks[0].neighbors == ()
    for number, chunk in enumerate(shown.chunks[1:], 1):
        before = int(first) + number - 1
        # What was retrieved for the chunk before, from which this one is predicted.
        assert [found.chunk for found in chunk.neighbors] == retrieved.ids[before][:K].tolist()
        assert [found.distance for found in chunk.neighbors] == distances[before][:K].tolist()
        texts = []
        for found in chunk.neighbors:
            texts.append("".join(token.text for token in (*found.neighbor, *found.continuation)))
            assert [texts[-1]] == retrieved.database.texts(np.array([found.chunk]), 2)
        # LCP, on text: a run of tokens stands, as text, where it says, and what is nowhere has none.
        tokens = [token for earlier in shown.chunks[:number] for token in earlier.tokens]
        for place, token in enumerate(chunk.tokens, len(tokens) + 1):
            tokens.append(token)
            run = "".join(entry.text for entry in tokens[place - token.prefix : place])
            assert any(run in found for found in texts)
            assert token.prefix or not any(
                token.text == entry.text for found in chunk.neighbors for entry in found.neighbor
            )
    few = inspected_document(store, retrieved, distances, document, nats[0], nats[K], K, 1)
    assert few.chunks == shown.chunks[:1]
    assert (few.total, few.off, few.on) == (shown.total, shown.off, shown.on)
