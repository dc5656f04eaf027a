"""Documents that fill a row group, a piece or a batch exactly, or by one more or less, through every stage."""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus import layout, near_copies, parquet
from retro_lab.corpus import tokens as tokens_module
from retro_lab.corpus.decontamination import DecontaminationStage, HeldOutStage
from retro_lab.corpus.deduplication import DeduplicationStage
from retro_lab.corpus.documents import SPLITS, Document, DocumentSource
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.near_copies import NearCopiesStage
from retro_lab.corpus.parquet import DOCUMENT_COLUMNS, DocumentsWriter, by_bytes, document_files, pieces, read_documents
from retro_lab.corpus.tokenizer import ByteBPE
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage, TokenStore


class Given(DocumentSource):
    """Documents of given texts, one list for each part; those that begin with `held` and `last` are held out."""

    def __init__(self, *parts: list[str]) -> None:
        super().__init__()
        self.texts = parts

    def identity(self) -> dict[str, object]:
        return {"kind": "given", "texts": self.texts}

    @property
    def named_splits(self) -> frozenset[str]:
        return frozenset({"validation", "test"})

    def parts(self) -> int:
        return len(self.texts)

    def read(self, part: int) -> Iterator[tuple[str, Document]]:
        for number, text in enumerate(self.texts[part]):
            split = {"held": "validation", "last": "test"}.get(text[:4], "train")
            yield split, Document(f"{part}:{number}", "given", text)


@pytest.fixture
def small(monkeypatch):
    """Two documents are a row group, two groups a piece, and so on: all that is bounded, bounded by a few."""
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 100)
    monkeypatch.setattr(parquet, "ROW_GROUP_DOCUMENTS", 2)
    monkeypatch.setattr(parquet, "GROUPS_IN_PIECE", 2)
    monkeypatch.setattr(parquet, "ROWS", 2)
    monkeypatch.setattr(tokens_module, "ENCODED_BYTES", 40)
    monkeypatch.setattr(near_copies, "GRAMS_AT_ONCE", 2)
    monkeypatch.setattr(layout, "BUCKET_DOCUMENTS", 2)


def texts_of(artifact, split):
    batches = [batch for path in document_files(artifact, split) for batch in read_documents(path)]
    return [text for batch in batches for text in batch["text"].to_pylist()]


def check_every_stage(parts):
    """Build all stages of `parts`, and compare what each holds with what went in."""
    with tempfile.TemporaryDirectory() as name:
        store = ArtifactStore(Path(name))
        documents = store.build(DocumentsStage(Given(*parts)))
        kept = store.build(DeduplicationStage(documents, store.build(NearCopiesStage(documents, 0.8))))
        clean = store.build(DecontaminationStage(kept, store.build(HeldOutStage(documents)), 0.8))
        tokenizer = store.build(TokenizerStage(ByteBPE(300, 1e4), clean))
        texts = [text for part in parts for text in part]
        held = {text.casefold() for text in texts if text.startswith(("held", "last"))}
        train: dict[str, str] = {}
        for text in texts:  # the first of equal ones is kept
            if not text.startswith(("held", "last")):
                train.setdefault(text.casefold(), text)
        expected = {
            "train": [text for key, text in train.items() if key not in held],
            "validation": [text for text in texts if text.startswith("held")],
            "test": [text for text in texts if text.startswith("last")],
        }
        for split in SPLITS:
            assert texts_of(clean, split) == expected[split]
            found = pieces(clean, split)
            assert all(piece.documents for piece in found)
            assert sum(piece.documents for piece in found) == len(expected[split])
            tokens = TokenStore(store.build(TokensStage(clean, tokenizer, split, 8, 0)), tokenizer)
            assert tokens.documents == len(expected[split])
            starts = tokens.document_start[:-1]
            assert sorted(tokens.texts(np.array([start]), 64)[0] for start in starts) == sorted(expected[split])


@pytest.mark.parametrize("count", range(1, 10))
def test_any_number_of_short_documents_can_be_built(small, count):
    check_every_stage([[f"a text of number {n} to train on" for n in range(count)] + ["held out", "last"]])


def test_documents_shorter_than_a_chunk_are_chunks_of_their_own(small):
    check_every_stage([[f"a{n}" for n in range(5)] + ["held", "last"]])


def test_a_part_without_documents_of_a_split_and_one_of_which_all_are_dropped(small):
    held = [*(f"held out {n}" for n in range(4)), *(f"last {n}" for n in range(4))]
    dropped = [text.upper() for text in held]  # as many as fill a piece
    check_every_stage([held, dropped, ["a text to train on that is no copy"] * 4, []])


@settings(max_examples=8)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["a", "held", "HELD", "last", "LAST"]), st.integers(1, 60)), max_size=9),
        min_size=1,
        max_size=3,
    )
)
def test_every_stage_holds_what_went_in(small, parts):
    texts = [[f"{word} {'x' * length}" for word, length in part] for part in parts]
    check_every_stage([["a", "held out", "last"], *texts])


@given(st.lists(st.integers(1, 120), max_size=12))
def test_row_groups_hold_documents_and_are_full_but_the_last(small, tmp_path, sizes):
    path = tmp_path / "documents.parquet"
    with DocumentsWriter(path) as writer:
        for number, size in enumerate(sizes):
            writer.add({"id": str(number), "source": "", "group": "", "text": "x" * size, "bytes": size})
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert all(0 < rows <= 2 for rows in groups)
    ends = np.cumsum(groups, dtype=int)
    assert all(rows == 2 or sum(sizes[end - rows : end]) >= 100 for rows, end in zip(groups[:-1], ends, strict=False))
    assert [len(text) for batch in read_documents(path) for text in batch["text"].to_pylist()] == sizes


@given(st.lists(st.integers(1, 12), max_size=12), st.integers(1, 30))
def test_texts_are_grouped_up_to_the_limit_and_not_below_it(sizes, limit):
    rows = [
        {"id": str(n), "source": "", "group": "", "text": "x" * size, "bytes": size} for n, size in enumerate(sizes)
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=DOCUMENT_COLUMNS)
    groups = [[len(text) for text in group["text"].to_pylist()] for group in by_bytes(batch, limit)]
    assert [size for group in groups for size in group] == sizes
    assert all(len(group) == 1 or sum(group) <= limit for group in groups)
    assert all(sum(group) + following[0] > limit for group, following in pairwise(groups))
