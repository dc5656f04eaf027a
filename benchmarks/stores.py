"""One store of random tokens in several formats, and what reads batches from each.

An item is a sequence of 2,048 tokens and the one after, and for each of its 32 chunks 2 neighbors of 128 tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import torch
from retro_pytorch.data import RETRODataset
from torch.utils.data import DataLoader

from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.tokenizer import SMALLEST_VOCABULARY, ByteBPE, DocumentTokenizer
from retro_lab.corpus.tokens import TokensFacts, TokenStore
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.neighbors import NO_NEIGHBOR, Neighbors
from retro_lab.retrieval.sequences import Retrieved, Sequences
from retro_lab.training.batches import TrainingBatches

M = 64
LENGTH = 2048
CHUNKS_PER_SEQUENCE = LENGTH // M
K = 2
STORED = 16
VOCABULARY = 8192
MARKER = 1
FIRST_ID = 103
"""Smallest id of text: retro-pytorch takes 0 for padding and 102 for the end of a document."""
MEAN_DOCUMENT = 1000
SLICE = 2**16
"""Chunks written at a time."""

Items = tuple[torch.Tensor, torch.Tensor]


class RandomTokens(Stage):
    """A `tokens` artifact of random ids in `uint32`, as a vocabulary of 128,000 would need."""

    name = "tokens"
    version = 2
    unit = "chunks"
    combines_shards = True

    def __init__(self, chunks: int) -> None:
        """Make at least `chunks` chunks."""
        self.chunks = chunks

    def settings(self) -> Mapping[str, Any]:
        """Chunk length and number of chunks."""
        return {"chunk_length": M, "chunks": self.chunks, "random": True}

    def shard_sizes(self) -> Sequence[int]:
        """One piece of work."""
        return [self.chunks]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write nothing yet."""
        advance(self.chunks)
        return {}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Write documents of random lengths, laid out as the real stage does."""
        random = np.random.default_rng(0)
        lengths = 1 + random.geometric(1 / MEAN_DOCUMENT, self.chunks * M // MEAN_DOCUMENT + 1)
        counts = -(-lengths // M)
        start = np.concatenate([[0], np.cumsum(counts)])
        chunks = int(start[-1])
        left = np.repeat(start[:-1] * M + lengths, counts) - M * np.arange(chunks)
        tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.uint32, ((chunks + 1) * M,))
        rows = tokens.reshape(-1, M)
        rows[-1] = MARKER
        for first in range(0, chunks, SLICE):
            part = slice(first, min(first + SLICE, chunks))
            ids = random.integers(FIRST_ID, VOCABULARY, (part.stop - first, M), dtype=np.uint32)
            ids[np.arange(M) >= left[part, None]] = MARKER
            rows[part] = ids
        rows[start[:-1], 0] = MARKER
        np.save(folder / "tokens_left.npy", np.append(left, 0).astype(np.uint32))
        np.save(folder / "document_start.npy", start)
        np.save(folder / "document_length.npy", lengths)
        np.save(folder / "document_bytes.npy", 4 * lengths)
        tokens = int(lengths.sum())
        return asdict(TokensFacts(len(lengths), chunks, tokens, 4 * tokens, altered=0, altered_examples=[]))


class RandomNeighbors(Stage):
    """A `neighbors` artifact whose neighbors lie anywhere: nothing that is read together stands together."""

    name = "neighbors"
    unit = "queries"
    combines_shards = True

    def __init__(self, tokens: Artifact) -> None:
        """Draw neighbors for the chunks of `tokens`."""
        self.tokens = tokens

    def settings(self) -> Mapping[str, Any]:
        """Neighbors of each chunk."""
        return {"stored": STORED, "random": True}

    def inputs(self) -> Mapping[str, Artifact]:
        """The tokens."""
        return {"tokens": self.tokens}

    def shard_sizes(self) -> Sequence[int]:
        """One piece of work."""
        return [self.tokens.facts["chunks"]]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write nothing yet."""
        advance(self.tokens.facts["chunks"])
        return {}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Write `ids.npy`, int32 [chunks, STORED]; one in a thousand is missing."""
        chunks, random = self.tokens.facts["chunks"], np.random.default_rng(1)
        ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", np.int32, (chunks, STORED))
        for first in range(0, chunks, SLICE):
            part = random.integers(0, chunks, (min(SLICE, chunks - first), STORED), dtype=np.int32)
            part[random.random(part.shape) < 0.001] = NO_NEIGHBOR
            ids[first : first + len(part)] = part
        return {"queries": chunks}


class BytesTokenizer(Stage):
    """The smallest `tokenizer` artifact, for a store that is never decoded."""

    name = "tokenizer"
    unit = "tokenizers"

    def settings(self) -> Mapping[str, Any]:
        """The vocabulary, of which it knows the bytes alone."""
        return {"vocabulary": VOCABULARY}

    def shard_sizes(self) -> Sequence[int]:
        """One piece of work."""
        return [1]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write a tokenizer of single bytes."""
        DocumentTokenizer(ByteBPE(SMALLEST_VOCABULARY, 0).make([]).tokenizer, VOCABULARY - 1).save(folder)
        return {}


def our_sequences(folder: Path, chunks: int) -> Sequences:
    """Build the store and its neighbors in the project's format, or find them in `folder`."""
    artifacts = ArtifactStore(folder)
    tokens = artifacts.build(RandomTokens(chunks))
    store = TokenStore(tokens, artifacts.build(BytesTokenizer()))
    neighbors = Neighbors(artifacts.build(RandomNeighbors(tokens)))
    return Sequences(store, Retrieved(store, neighbors.ids, Value.neighbor_and_continuation), LENGTH)


def our_batches(sequences: Sequences, batch_size: int) -> Iterator[Any]:
    """What the training loop reads: shuffled, with masks and lengths too."""
    return iter(DataLoader(TrainingBatches(sequences, batch_size, K, seed=0), batch_size=None, collate_fn=_as_it_is))


def touch(sequences: Sequences) -> None:
    """Have every page of the maps that ours reads from mapped."""
    assert sequences.retrieved is not None
    for array in (sequences.store._rows, sequences.store._left, sequences.retrieved.ids):
        array.max()


class ByChunk:
    """Items from a store that gives out chunks by their numbers, sorted and each once, a whole batch at a time."""

    def __init__(self, sequences: Sequences, rows: Any) -> None:
        """Read chunks by `rows`, a function from sorted numbers to [numbers, M]."""
        assert sequences.retrieved is not None
        self.rows, self.ids, self.chunks = rows, sequences.retrieved.ids, sequences.store.chunks

    def __len__(self) -> int:
        """Number of items."""
        return self.chunks // CHUNKS_PER_SEQUENCE

    def __getitems__(self, items: list[int]) -> Items:
        """Read the tokens [B, LENGTH + 1] and neighbors [B, l, K, 2 M] of a batch."""
        chunks = np.asarray(items)[:, None] * CHUNKS_PER_SEQUENCE + np.arange(CHUNKS_PER_SEQUENCE + 1)
        neighbors = np.maximum(self.ids[chunks[:, :-1], :K], 0)[..., None] + np.arange(2)
        wanted, places = np.unique(np.concatenate([chunks.ravel(), neighbors.ravel()]), return_inverse=True)
        rows = self.rows(np.minimum(wanted, self.chunks))[places]
        tokens = rows[: chunks.size].reshape(len(items), -1)[:, : LENGTH + 1]
        return torch.from_numpy(tokens), torch.from_numpy(rows[chunks.size :].reshape(*neighbors.shape[:-1], 2 * M))


def h5py_batches(folder: Path, sequences: Sequences, batch_size: int) -> Iterator[Items]:
    """Fancy indexing of a contiguous h5py dataset."""
    path, tokens = folder / "tokens.h5", _rows(sequences)
    if not path.is_file():
        with h5py.File(path.with_suffix(".tmp"), "w") as file:
            file.create_dataset("tokens", data=tokens)
        path.with_suffix(".tmp").rename(path)
    dataset = h5py.File(path, "r")["tokens"]
    return _shuffled(ByChunk(sequences, lambda numbers: dataset[numbers]), batch_size)


def arrow_batches(folder: Path, sequences: Sequences, batch_size: int) -> Iterator[Items]:
    """A memory-mapped Hugging Face dataset in NumPy format, one row a chunk."""
    path, tokens = folder / "tokens.arrow", _rows(sequences)
    if not path.is_file():
        schema = pa.schema([("tokens", pa.list_(pa.uint32(), M))])
        with pa.OSFile(str(path.with_suffix(".tmp")), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for first in range(0, len(tokens), SLICE):
                part = pa.FixedSizeListArray.from_arrays(pa.array(tokens[first : first + SLICE].ravel()), M)
                writer.write_batch(pa.record_batch([part], schema=schema))
        path.with_suffix(".tmp").rename(path)
    dataset = datasets.Dataset.from_file(str(path)).with_format("numpy")
    return _shuffled(ByChunk(sequences, lambda numbers: dataset[numbers]["tokens"]), batch_size)


def peer_batches(folder: Path, sequences: Sequences, batch_size: int) -> Iterator[Items]:
    """retro-pytorch's own dataset, which maps its files anew for each item, with the default collation."""
    tokens, count = _rows(sequences), sequences.store.chunks // CHUNKS_PER_SEQUENCE
    names = [folder / f"retro_pytorch_{part}.bin" for part in ("chunks", "neighbors", "sequences")]
    if not names[2].is_file():
        shape = sequences.store.chunks + CHUNKS_PER_SEQUENCE
        chunks = np.memmap(names[0], np.int32, "w+", shape=(shape, M + 1))
        for first in range(0, len(tokens) - 1, SLICE):
            last = min(first + SLICE, len(tokens) - 1)
            chunks[first:last, :M], chunks[first:last, M] = tokens[first:last], tokens[first + 1 : last + 1, 0]
        neighbors = np.memmap(names[1], np.int32, "w+", shape=(shape, K))
        neighbors[: sequences.store.chunks] = sequences.retrieved.ids[:, :K]
        (CHUNKS_PER_SEQUENCE * np.arange(count, dtype=np.int32)).tofile(names[2])
    dataset = RETRODataset(
        num_chunks=sequences.store.chunks, chunk_size=M, seq_len=LENGTH, num_sequences=count, num_neighbors=K,
        chunk_memmap_path=names[0], chunk_nn_memmap_path=names[1], seq_memmap_path=names[2],
    )  # fmt: skip
    return _forever(DataLoader(dataset, batch_size, shuffle=True))


def _rows(sequences: Sequences) -> np.ndarray:
    return sequences.store.artifact.array("tokens.npy").reshape(-1, M)


def _shuffled(dataset: Any, batch_size: int) -> Iterator[Items]:
    return _forever(DataLoader(dataset, batch_size, shuffle=True, collate_fn=_as_it_is))


def _forever(loader: DataLoader[Any]) -> Iterator[Any]:
    for each in cycle([loader]):
        yield from each


def _as_it_is(batch: Any) -> Any:
    return batch
