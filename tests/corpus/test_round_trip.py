"""Tokens of whole corpora: one marker for each document, and the held-out text as it was, or a refusal."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_of_all_kinds import KINDS, LOSSLESS, LOSSY, made
from written_files import write_lines

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus import parquet
from retro_lab.corpus.corpus import check_round_trip
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.corpus.tokenizer import DocumentTokenizer, TokenizerRecipe
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage, TokenStore
from retro_lab.errors import ConfigurationError

HELD_OUT = ["The end </s> of <|endoftext|> it: Foo", "the dog", "[CLS] word <0x0 [SEP]", " a\n\n  b é"]


class Given(TokenizerRecipe):
    """A tokenizer that is already there."""

    learns = False

    def __init__(self, kind):
        self.kind = kind

    def identity(self):
        return {"kind": self.kind}

    def make(self, texts):
        return DocumentTokenizer.adapt(*made(self.kind))


def built(root, kind, train, held_out, split, chunk_length=4):
    """Take texts to the token store of a split by the real stages."""
    sources = [
        str(write_lines(root / f"{name}.jsonl", *({"text": text} for text in texts)))
        for name, texts in (("train", train), ("validation", held_out), ("test", held_out))
    ]
    store = ArtifactStore(root / "artifacts")
    documents = store.build(DocumentsStage(LocalSource(*sources)))
    tokenizer = store.build(TokenizerStage(Given(kind), documents))
    return TokenStore(store.build(TokensStage(documents, tokenizer, split, chunk_length, 0)), tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_has_as_many_markers_as_documents_and_chunks_to_fill(tmp_path, kind):
    texts = [*HELD_OUT, "<|endoftext|>" * 9, "</s> </s>", "[CLS] [CLS]", "word word"]
    store = built(tmp_path, kind, texts, HELD_OUT, "train")
    starts = np.arange(store.chunks)[store.starts_document(np.arange(store.chunks))]
    assert len(starts) == store.documents == len(texts)
    for chunk, length in zip(starts, store.document_length, strict=True):
        tokens = store.read(chunk, -(-length // store.chunk_length))
        assert tokens[0] == store.tokenizer.document_marker
        assert store.tokenizer.document_marker not in tokens[1:length]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_tokenizer_that_gives_the_text_back_is_taken(tmp_path, kind):
    store = built(tmp_path, kind, HELD_OUT, HELD_OUT, "validation")
    assert (store.facts.altered, store.facts.altered_examples) == (0, [])
    check_round_trip(store, lossy=False)


@pytest.mark.parametrize(
    ("kind", "split", "altered"), [("word_level", "validation", 3), ("uncased_word_piece", "test", 3)]
)
def test_a_tokenizer_that_loses_text_is_refused_unless_that_is_accepted(tmp_path, kind, split, altered):
    assert kind in LOSSY
    store = built(tmp_path, kind, HELD_OUT, HELD_OUT, split)
    with pytest.raises(ConfigurationError) as error:
        check_round_trip(store, lossy=False)
    assert f"does not give back the text of {altered} of 4 held-out documents ('" in str(error.value)
    assert "tokenizer.lossy=true" in str(error.value)
    assert "becomes" in str(error.value)
    check_round_trip(store, lossy=True)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_piece_without_documents_is_passed_over(tmp_path, monkeypatch, empty):
    """The table of documents may end in, or begin with, a row group that holds none."""
    monkeypatch.setattr(parquet, "GROUPS_IN_PIECE", 1)
    held_out = str(write_lines(tmp_path / "held_out.jsonl", *({"text": text} for text in HELD_OUT)))
    train = str(write_lines(tmp_path / "train.jsonl", {"text": "train"}))
    store = ArtifactStore(tmp_path / "artifacts")
    test = str(write_lines(tmp_path / "test.jsonl", {"text": "test"}))
    documents = store.build(DocumentsStage(LocalSource(train, held_out, test)))
    path = next(path for path in documents.folder.glob("*/validation.parquet") if pq.read_metadata(path).num_rows)
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema) as writer:
        for number, rows in enumerate([table.slice(0, 2), table.slice(2)]):
            for group in [table.slice(0, 0), rows] if number == empty else [rows]:
                writer.write_table(group)
        if empty == 2:
            writer.write_table(table.slice(0, 0))
    tokenizer = store.build(TokenizerStage(Given("byte_level"), documents))
    stage = TokensStage(documents, tokenizer, "validation", 4, 0)
    assert 0 in stage.shard_sizes()
    built = TokenStore(store.build(stage), tokenizer)
    assert built.documents == len(HELD_OUT)
    assert built.facts.altered == 0
    assert sorted(pq.read_table(built.documents_table)["id"].to_pylist()) == sorted(table["id"].to_pylist())


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), chunk_length=st.integers(1, 5))
def test_documents_of_any_length_fill_whole_chunks(tmp_path_factory, lengths, chunk_length):
    # The tokenizer has one id for each of these letters, so a document has as many tokens, and its marker.
    texts = [chr(ord("A") + number) * length for number, length in enumerate(lengths)]
    folder = tmp_path_factory.mktemp("lengths")
    store = built(folder, "byte_level", ["x" * 9], texts, "validation", chunk_length)
    assert sorted(store.document_length) == sorted(length + 1 for length in lengths)
    chunks = -(-store.document_length // chunk_length)
    np.testing.assert_array_equal(store.document_start, [0, *np.cumsum(chunks)])
    np.testing.assert_array_equal(
        np.repeat(np.arange(store.documents), chunks), store.document_of(np.arange(store.chunks))
    )
    found = [
        "".join(store.texts(np.array([start]), count))
        for start, count in zip(store.document_start, chunks, strict=False)
    ]
    assert sorted(found) == sorted(texts)
    filling = store.read(np.arange(store.chunks + 1))
    assert (filling == store.tokenizer.document_marker).sum() == filling.size - sum(lengths)
