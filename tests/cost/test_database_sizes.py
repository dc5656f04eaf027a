"""What `task=plan` says of sizes, against indexes and artifacts that were built."""

import faiss
import numpy as np
import pytest
from pipeline import RandomSentences, build_chunks, search

from retro_lab.cost.database import DatabaseSizes, index_bytes

STORED = 4


@pytest.mark.parametrize(
    "factory",
    ["Flat", "SQ8", "IVF64,Flat", "IVF64,PQ8x4fs,Refine(SQ8)", "IVF64_HNSW32,PQ16x4fs,Refine(SQfp16)", "HNSW16",
     "PCA16,IVF64,Flat"],
)  # fmt: skip
def test_the_bytes_of_an_index_are_those_that_faiss_writes(factory: str) -> None:
    width, vectors = 32, np.random.default_rng(0).normal(size=(20_000, 32)).astype(np.float32)
    index = faiss.index_factory(width, factory)
    index.train(vectors)
    index.add(vectors)
    assert index_bytes(factory, len(vectors), width) == pytest.approx(len(faiss.serialize_index(index)), rel=0.05)


def test_a_real_build_is_as_large_as_planned(tmp_path, tiny_bert) -> None:
    chunks = build_chunks(tmp_path, tiny_bert, RandomSentences(documents=160, longest=1_600), chunk_length=64)
    store, embeddings = chunks.stores["train"], chunks.embeddings["train"]
    neighbors = search(chunks, "train", STORED, cuts=(int(store.document_start[store.documents // 2]),))
    tokens = store.facts.tokens
    sizes = DatabaseSizes(
        database_tokens=tokens,
        searched_tokens=tokens,
        tokens_per_document=tokens / store.documents,
        chunk_length=64,
        vocabulary=store.tokenizer.vocabulary_size,
        width=embeddings.width,
        stored=STORED,
        factory="auto",
        exact_below=200_000,
        recall=0.95,
        max_bytes=None,
        largest_index=store.chunks * embeddings.width * 4 * 0.7,
    )
    assert sizes.chunks == pytest.approx(store.chunks, rel=0.05)
    assert sizes.index_shards == 2
    assert sizes.index_factory == "Flat"
    planned = (
        (store.artifact, sizes.tokens_bytes),
        (embeddings.artifact, sizes.embeddings_bytes),
        (neighbors.artifact, sizes.neighbors_bytes),
    )
    for artifact, expected in planned:
        assert expected == pytest.approx(on_disk(artifact.folder), rel=0.05), artifact.folder
    for stage, expected in (("index", sizes.index_bytes), ("search", sizes.search_bytes)):
        assert expected == pytest.approx(on_disk(tmp_path / stage), rel=0.05), stage


def on_disk(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".json")
