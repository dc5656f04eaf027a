"""Corpora much larger than the memory that building them may take."""

import gzip
import json
import random
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from peak_memory import peak_memory
from written_files import write_lines

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus import parquet
from retro_lab.corpus import tokens as tokens_module
from retro_lab.corpus.documents import MAX_DOCUMENT_BYTES, TOO_LONG
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.corpus.tokenizer import ByteBPE
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage, TokenStore

IMPORTED = 200e6
"""What Python and the libraries take, at most."""
BUILD = """
from pathlib import Path
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage
from retro_lab.corpus.tokenizer import ByteBPE
root = Path({root!r})
store = ArtifactStore(root / "artifacts")
documents = store.build(DocumentsStage(LocalSource(str(root / "train"), str(root / "held.jsonl"))))
"""
TOKENS = """
tokenizer = store.build(TokenizerStage(ByteBPE(300, 1e4), documents))
store.build(TokensStage(documents, tokenizer, "train", 64, 0))
"""


def test_a_gigabyte_in_one_line_is_skipped(tmp_path):
    path = tmp_path / "one_line.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"text": "')
        for _ in range(64):
            file.write(b"x" * 2**24)
        file.write(b'"}\n{"text": "short"}\n')
    script = (
        f"from retro_lab.corpus.sources.local import LocalSource; source = LocalSource({str(path)!r}); "
        "print([document.problem for _, document in source.read(0)])"
    )
    printed, peak = peak_memory(script)
    assert printed == [str([TOO_LONG, None])]
    assert peak < IMPORTED + 8 * MAX_DOCUMENT_BYTES


def test_documents_of_a_large_file_are_not_held(tmp_path):
    text = " ".join(random.Random(0).choices(["larger", "than", "the", "memory"], k=20_000))
    line = json.dumps({"text": text}).encode() + b"\n"
    (tmp_path / "train").mkdir()
    path = tmp_path / "train" / "large.jsonl"
    with path.open("wb") as file:
        for _ in range(400_000_000 // len(line)):
            file.write(line)
    write_lines(tmp_path / "held.jsonl", {"text": "held out"}, {"text": "held out, too"})
    try:
        _, peak = peak_memory(BUILD.format(root=str(tmp_path)))
    finally:
        path.unlink()
    assert peak < IMPORTED + 100e6


def test_long_documents_are_not_encoded_together(tmp_path):
    words = re.findall(r"\w+", "encoding takes far more memory than the text that is encoded so few at a time")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=50_000)) for _ in range(48)]  # 14 MB: 1.8 GB, were they encoded at once
    write_lines(tmp_path / "train" / "a.jsonl", *({"text": text} for text in texts))
    write_lines(tmp_path / "held.jsonl", {"text": "held out"}, {"text": "held out, too"})
    _, peak = peak_memory(BUILD.format(root=str(tmp_path)) + TOKENS)
    assert peak < IMPORTED + 250e6


def build_tokens(root, source):
    """Build the tokens of the training split; return the stage and the store."""
    store = ArtifactStore(root)
    documents = store.build(DocumentsStage(source))
    tokenizer = store.build(TokenizerStage(ByteBPE(300, 1e6), documents))
    stage = TokensStage(documents, tokenizer, "train", 8, 0)
    return stage, TokenStore(store.build(stage), tokenizer)


@pytest.fixture
def source(tmp_path):
    """A hundred documents in one file, from empty-looking to long."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["one", "two", "three"], k=draw.randint(1, 60))) for _ in range(100)]
    path = write_lines(tmp_path / "a.jsonl", *({"text": text} for text in texts))
    held = write_lines(tmp_path / "held.jsonl", {"text": "held out"}, {"text": "held out, too"})
    return LocalSource(str(path), str(held))


def test_one_file_is_many_shards_of_tokens_with_every_document_in_its_place(tmp_path, source, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 500)
    monkeypatch.setattr(parquet, "GROUPS_IN_PIECE", 2)
    monkeypatch.setattr(tokens_module, "ENCODED_BYTES", 200)
    monkeypatch.setattr("retro_lab.corpus.layout.BUCKET_DOCUMENTS", 7)
    stage, store = build_tokens(tmp_path / "artifacts", source)
    assert len(stage.shard_sizes()) > 5
    assert sum(stage.shard_sizes()) == store.documents == 100
    table = pq.read_table(store.documents_table)
    texts = {document.id: document.text for split, document in source.read(0) if split == "train"}
    assert set(table["id"].to_pylist()) == set(texts)
    assert table["id"].to_pylist() != sorted(texts)
    assert table["group"] == table["id"]
    for number, identifier in enumerate(table["id"].to_pylist()):
        first, after = store.document_start[number : number + 2]
        length = store.document_length[number]
        tokens = store.read(np.array([first]), after - first)[0]
        expected = store.tokenizer.encode([texts[identifier]])[0]
        np.testing.assert_array_equal(tokens[:length], expected)
        assert set(tokens[length:]) <= {store.tokenizer.document_marker}
        assert store.document_bytes[number] == len(texts[identifier])
        assert store.real_tokens(np.array([first]), after - first)[0] == length
    assert set(store.read(np.array([store.chunks]))[0]) == {store.tokenizer.document_marker}


def test_shards_of_tokens_do_not_change_what_is_built(tmp_path, source, monkeypatch):
    whole = build_tokens(tmp_path / "whole", source)[1]
    monkeypatch.setattr(tokens_module, "ENCODED_BYTES", 200)
    monkeypatch.setattr("retro_lab.corpus.layout.BUCKET_DOCUMENTS", 7)
    cut = build_tokens(tmp_path / "cut", source)[1]
    files = ("tokens.npy", "tokens_left.npy", "document_start.npy", "document_length.npy", "document_bytes.npy",
             "document_group.npy")  # fmt: skip
    for name in files:
        assert (whole.artifact.folder / name).read_bytes() == (cut.artifact.folder / name).read_bytes()
    assert pq.read_table(whole.documents_table) == pq.read_table(cut.documents_table)
