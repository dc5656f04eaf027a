"""Flipped bits: a file of a built pipeline that has changed is refused, not used."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline import build_chunks, index, search

from retro_lab.artifacts import manifest as manifest_module
from retro_lab.artifacts.manifest import Manifest
from retro_lab.artifacts.stage import Artifact
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ArtifactError
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.index import Index
from retro_lab.retrieval.sequences import Retrieved


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    chunks = build_chunks(tmp_path_factory.mktemp("damage"), tiny_bert, similarity=0.8)
    index(chunks)
    search(chunks, "train", stored=4)
    return chunks


@given(st.data())
def test_any_flipped_bit_of_a_small_file_is_refused_at_opening(chunks, data):
    folder = data.draw(st.sampled_from(chunks.artifacts.artifacts()))
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    stage = SimpleNamespace(name=folder.parent.name, fingerprint=folder.name)
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(broken)
    try:
        with pytest.raises(ArtifactError, match=re.escape(str(path))):
            chunks.artifacts.find(stage)
    finally:
        path.write_bytes(whole)
    assert chunks.artifacts.find(stage) is not None


@pytest.fixture
def large(chunks, tmp_path, monkeypatch):
    """A copy of the artifacts, of which every file counts as too large to be read at opening."""
    monkeypatch.setattr(manifest_module, "BYTES_READ_ON_OPENING", 0)
    shutil.copytree(chunks.artifacts.root, tmp_path / "artifacts")

    def copy(artifact):
        folder = tmp_path / "artifacts" / artifact.folder.relative_to(chunks.artifacts.root)
        found = ArtifactStore(tmp_path / "artifacts").find(
            SimpleNamespace(name=folder.parent.name, fingerprint=folder.name)
        )
        assert found is not None
        return found

    return copy


def parent(chunks, artifact, role):
    (folder,) = chunks.artifacts.root.glob(f"*/{artifact.manifest.recipe['inputs'][role]}")
    return Artifact(folder, Manifest.read(folder))


def change(path, place, value):
    array = np.load(path, mmap_mode="r+")
    array[place] = value
    array.flush()


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("document_bytes.npy", 3, 1 << 40),
        ("document_length.npy", 0, -5),
        ("document_start.npy", 2, 10**6),
        ("document_start.npy", 0, 1),
        ("document_group.npy", 3, -1),
        ("document_group.npy", 3, 2**20),
        ("document_group.npy", 0, 1),
        ("tokens.npy", 5, 2**16 - 1),
    ],
)
def test_numbers_that_cannot_be_are_refused_in_large_files_too(chunks, large, name, place, value):
    tokens = large(chunks.stores["train"].artifact)
    tokenizer = parent(chunks, chunks.stores["train"].artifact, "tokenizer")
    store = TokenStore(tokens, tokenizer)
    store.read(np.arange(store.chunks))
    change(tokens.folder / name, place, value)
    with pytest.raises(ArtifactError, match=rf"{name} is damaged .*task=verify"):
        TokenStore(tokens, tokenizer).read(np.arange(store.chunks))


@pytest.mark.parametrize("dtype", ["f2", "f4", "i4", "i8", "u2", "u4"])
def test_a_broken_header_is_refused_or_says_the_same(tmp_path, dtype):
    expected = np.arange(63).reshape(7, 9).astype(dtype)
    path = tmp_path / "array.npy"
    np.save(path, expected)
    artifact, whole = Artifact(tmp_path, Manifest({}, {}, {})), path.read_bytes()
    refused = 0
    for place in range(8 * 128):
        broken = bytearray(whole)
        broken[place // 8] ^= 1 << place % 8
        path.write_bytes(broken)
        try:
            found = artifact.array("array.npy")
        except ArtifactError as error:
            refused += bool(re.search(r"array\.npy is damaged .*task=verify", str(error)))
        else:
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
            refused += 1
    assert refused == 8 * 128


@pytest.mark.parametrize("value", [-2, 10**6])
def test_neighbors_that_are_not_there_are_refused(chunks, value):
    store = chunks.stores["train"]
    ids = np.zeros((store.chunks, 2), np.int64)
    ids[3, 1] = value
    with pytest.raises(ArtifactError, match=rf"chunk {value} of {store.chunks}.*task=verify"):
        Retrieved(store, ids, Value.neighbor).read(np.arange(5), 2)


def test_an_index_that_faiss_cannot_read_is_refused(chunks, large):
    artifact = large(index(chunks).artifact)
    path = artifact.folder / "00000" / "index.faiss"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ArtifactError, match=r"index\.faiss is damaged .*task=verify"):
        Index(artifact).open()
