"""A real database searched live: what the server finds for a text of any length."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_engine import FACTS
from pipeline import CHUNK_LENGTH, build_chunks

from retro_lab.retrieval.config import DatabaseConfig, EmbedderConfig, IndexConfig, RetrievalConfig
from retro_lab.retrieval.database import Database
from retro_lab.serving.run import ServedRun

STORED = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> SimpleNamespace:
    """The search of a small database, its tokens, and the search that it is made with."""
    chunks = build_chunks(tmp_path_factory.mktemp("served"), tiny_bert)
    database = Database(
        chunks.artifacts, "random", chunks.stores["train"], chunks.stores["test"], DatabaseConfig(),
        RetrievalConfig(stored=STORED), IndexConfig(factory="Flat"),
        EmbedderConfig(model=str(tiny_bert), max_length=64, batch_size=16, precision="float32"), k=1,
    )  # fmt: skip
    live, store = database.live(1), chunks.stores["train"]

    def no_generator(k: int) -> None:
        raise AssertionError

    return SimpleNamespace(served=ServedRun(FACTS, store.tokenizer, live, no_generator), live=live, store=store)


def test_the_text_of_a_chunk_finds_that_chunk_and_what_follows_it(run: SimpleNamespace) -> None:
    chunk = int(run.store.document_start[3])  # with one that follows in its document
    whole, own = run.store.texts(np.array([chunk]), 2)[0], run.store.texts(np.array([chunk]))[0]
    [found] = run.served.search([own], 2)
    nearest = found.neighbors[0]
    assert found.chunks == [own]
    assert nearest.text == own
    assert nearest.text + nearest.continuation == run.store.texts(np.array([nearest.chunk]), 2)[0]
    assert nearest.distance == pytest.approx(0, abs=1e-4)
    assert whole.startswith(own)
    document = run.store.document_of(np.array([nearest.chunk]))
    assert nearest.document == run.store.document_ids(document)[0]


def test_a_longer_text_is_searched_for_whole_and_its_neighbors_are_ranked_together(run: SimpleNamespace) -> None:
    texts = [run.store.texts(np.array([first]), count)[0] for first, count in ((0, 3), (7, 1), (20, 5))]
    texts += ["x", "a snowman \u2603 or two \u2603\u2603 of \U0001f9ca"]  # characters that several tokens share
    for text, searched in zip(texts, run.served.search(texts, 5), strict=True):
        assert "".join(searched.chunks) == text
        tokens = run.store.tokenizer.encode([text])[0][1:]
        pieces = np.array_split(tokens, -(-len(tokens) // CHUNK_LENGTH))
        lengths = [len(piece) for piece in pieces]
        assert len(pieces) == len(searched.chunks)
        assert max(lengths) - min(lengths) <= 1
        # By hand: the least distance of each chunk of the database to any of the pieces.
        ids, distances = run.live.search(pieces)
        least: dict[int, float] = {}
        for chunk, distance in zip(ids.ravel().tolist(), distances.ravel().tolist(), strict=True):
            least[chunk] = min(distance, least.get(chunk, np.inf))
        assert [near.distance for near in searched.neighbors] == pytest.approx(sorted(least.values())[:5], abs=1e-4)
        assert len({near.chunk for near in searched.neighbors}) == 5
        for near in searched.neighbors:
            assert near.distance == pytest.approx(least[near.chunk], abs=1e-4)
            assert near.chunk in ids[near.query_chunk]


def test_the_first_of_more_neighbors_are_the_same(run: SimpleNamespace) -> None:
    text = run.store.texts(np.array([4]), 4)[0]
    [few], [many] = run.served.search([text], 3), run.served.search([text], STORED)
    assert few.neighbors == many.neighbors[:3]
    assert few.chunks == many.chunks
