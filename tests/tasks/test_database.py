"""The retrieval database: what is in it, at any size, from one search, with every method."""

import json
import re
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from retro_lab.config.compose import compose
from retro_lab.corpus.documents import SPLITS
from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.neighbors import NO_NEIGHBOR
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks import build, inspect
from retro_lab.tasks.build import Inputs

FOLDER = RunFolder(Path())
FRACTIONS = [0.003, 0.03, 0.3, 1]
WORDS = [
    "the",
    "frozen",
    "encoder",
    "embeds",
    "chunks",
    "and",
    "finds",
    "neighbors",
    "in",
    "a",
    "database",
    "of",
    "many",
    "tokens",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory, tiny_bert):
    """Build a database of short documents with the overrides given."""
    folder = tmp_path_factory.mktemp("database")
    draw = np.random.default_rng(0)
    rows = [{"text": " ".join(draw.choice(WORDS, draw.integers(2, 30)))} for _ in range(400)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def built(*overrides, artifacts="artifacts"):
        config = compose([
            "corpus=local", f"corpus.path={folder / 'corpus.jsonl'}", "corpus.text_field=text",
            "corpus.validation_fraction=0.05", "corpus.test_fraction=0.05",
            "tokenizer.vocabulary_size=300", "model.chunk_length=8",
            f"embedder.model={tiny_bert}", f"paths.artifacts={folder / artifacts}", "retrieval.k=1",
            "evaluation.k=[1]", "retrieval.stored=4", *overrides,
        ])  # fmt: skip
        inputs = Inputs(config)
        return SimpleNamespace(corpus=inputs.corpus, database=inputs.database, folder=folder / artifacts, config=config)

    return built


def neighbors(made, split):
    return made.database.neighbors_of(made.corpus.stores[split])


def stages(made):
    return {path.name: len(list(path.iterdir())) for path in made.folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("method", ["dense", "bm25"])
def test_databases_of_many_sizes_cost_one_search(built, method):
    """Merging the shards of each size gives what one search of a database of that size finds."""
    given = [f"retrieval.method={method}", f"database.fractions={FRACTIONS}"]
    whole = built(*given, artifacts=method)
    for store in whole.corpus.stores.values():
        whole.database.neighbors_of(store)
    searched = stages(whole)["search"]
    assert searched == len(whole.corpus.stores) * len(FRACTIONS)
    chunks = []
    for fraction in FRACTIONS:
        merged = built(*given, f"database.fraction={fraction}", artifacts=method)
        chunks.append(merged.database.chunks)
        direct = built(f"retrieval.method={method}", f"database.fraction={fraction}", artifacts=f"direct {method}")
        assert direct.database.chunks == chunks[-1]
        for split in SPLITS:
            tables = [neighbors(made, split) for made in (merged, direct)]
            assert stages(merged)["search"] == searched
            distances = [table.distances for table in tables]
            ids = [table.ids for table in tables]
            assert ids[0].shape[1] == 4
            assert ids[0].max() < chunks[-1]
            if method == "bm25":
                np.testing.assert_array_equal(*distances)
                np.testing.assert_array_equal(*ids)
                continue
            # FAISS forms |x|^2 + |y|^2 - 2 x.y in blocks, so other cuts round differently: compare who is far apart.
            np.testing.assert_allclose(*distances, atol=1e-4)
            far = np.diff(np.nan_to_num(distances[1], posinf=1e9), axis=1, prepend=-1) > 1e-3
            clear = far[:, :-1] & far[:, 1:]
            assert clear.any()
            np.testing.assert_array_equal(ids[0][:, :-1][clear], ids[1][:, :-1][clear])
    assert chunks[-1] / chunks[0] > 10**2.5


def test_a_hundred_neighbors_are_stored_and_read(built):
    made = built("retrieval.stored=100", "evaluation.k=[1,100]")
    for store in made.corpus.stores.values():
        ids = made.database.neighbors_of(store).ids
        assert ids.shape == (store.chunks, 100)
        assert (ids != NO_NEIGHBOR).all()
        assert all(len(set(row)) == 100 for row in ids[::50])


def test_held_out_documents_are_in_no_database(built):
    made = built()
    names = {
        split: set(pq.read_table(store.documents_table, columns=["id"])["id"].to_pylist())
        for split, store in made.corpus.stores.items()
    }
    for one, other in combinations(names.values(), 2):
        assert not one & other
    train = made.corpus.stores["train"]
    assert made.database.chunks == train.chunks == sum(index.facts.vectors for index in made.database.indexes)
    for table in map(made.database.neighbors_of, made.corpus.stores.values()):
        assert table.ids.max() < train.chunks


def test_bm25_needs_no_embeddings(built):
    made = built("retrieval.method=bm25", "embedder.model=there-is-none", artifacts="sparse")
    assert not {"embeddings", "index"} & set(stages(made))
    assert made.database.method == "BM25"
    assert neighbors(made, "validation").with_neighbors == 1


def test_hybrid_is_one_override(built):
    made = built("retrieval.method=hybrid", "retrieval.candidates=20")
    assert made.database.method == "Flat, ranked by BM25"
    hybrid, dense = (neighbors(build, "validation").ids for build in (made, built()))
    assert (hybrid != dense).any()


def test_building_states_the_recall_of_the_neighbors_stored(built, capsys):
    made = built("retrieval.stored=100", "evaluation.k=[1,100]", "index.factory=IVF4,Flat")
    build.run(made.config, FOLDER)
    [index] = made.database.indexes
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("index: ")]
    assert line.startswith(f"index: IVF4,Flat, {made.database.chunks:,} vectors, ")
    assert line.endswith(f"recall@10 {index.recalls[10]}, recall@100 {index.recalls[100]}")


def test_inspecting_shows_terminal_commands_and_does_not_obey_them(built, capsys, monkeypatch):
    made = built("task=inspect", "task.chunk=0")
    command = "\x1b]0;title\x07"
    real = TokenStore.document_ids
    monkeypatch.setattr(
        TokenStore, "document_ids", lambda self, documents: [command + name for name in real(self, documents)]
    )
    monkeypatch.setattr(DocumentTokenizer, "pieces", lambda self, tokens: [command] * len(tokens))
    inspect.run(made.config, FOLDER)
    shown = capsys.readouterr().out
    assert "validation chunk 0" in shown
    assert "neighbor 1" in shown
    assert shown.count("\\x1b]0;title\\x07") > 2 * 8  # in two panels: the title, and each token
    assert not {"\x1b", "\x07"} & set(shown)


def test_inspecting_takes_the_chunks_of_one_document(built, capsys):
    made = built()
    store = made.corpus.stores["validation"]
    document = int(np.argmax(store.document_length))
    first, end = store.document_start[document : document + 2]
    [name] = store.document_ids(np.array([document]))
    inspect.run(built("task=inspect", f"task.document={name}", "task.count=100").config, FOLDER)
    found = [int(number) for number in re.findall(r"validation chunk (\d+), ", capsys.readouterr().out)]
    assert found == list(range(first, end))
    with pytest.raises(
        ConfigurationError, match=r"task\.document=none is not one of the .* documents of the validation"
    ):
        inspect.run(built("task=inspect", "task.document=none").config, FOLDER)
    with pytest.raises(ConfigurationError, match=r"is not one of the .* chunks of the train split"):
        inspect.run(built("task=inspect", "task.split=train", "task.chunk=1000000").config, FOLDER)
    with pytest.raises(ConfigurationError, match="give one of them"):
        built("task=inspect", "task.document=none", "task.chunk=1")


def test_inspecting_what_nobody_trained_leaves_no_folder(built, tmp_path, capsys):
    folder, used = tmp_path / "outputs" / "mine", tmp_path / "others" / "mine"
    for path in (folder, used):
        path.mkdir(parents=True)
    (used / "config.yaml").write_text("")
    for path in (folder, used):
        inspect.run(built("task=inspect").config, RunFolder(path))
    assert not folder.parent.exists()
    assert [path.name for path in used.iterdir()] == ["config.yaml"]


def test_ids_of_documents_come_from_any_row_group(built, monkeypatch, tmp_path):
    store = built().corpus.stores["train"]
    table = pq.read_table(store.documents_table)
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=7)
    monkeypatch.setattr(TokenStore, "documents_table", tmp_path / "table.parquet")
    wanted = np.array([store.documents - 1, 0, 6, 7, 8, 0])
    assert store.document_ids(wanted) == [table["id"][int(number)].as_py() for number in wanted]
