"""Sliding windows over whole documents (Borgeaud et al. 2022, Sec. 4; App. C.2 "overlapping").

    document     |--------------------------------------|
    window 0     [=================]                        scores all its targets
    window 1             [.........========]                scores only targets beyond window 0
    window 2                       [.......========.....

Windows start on chunk boundaries, so each uses the same precomputed neighbors. A document that is scored in part has
the same windows as a whole one, without those in which nothing is scored.
"""

from typing import Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from retro_lab.evaluation.config import check_stride
from retro_lab.evaluation.score import Score
from retro_lab.retrieval.sequences import Batch, Sequences
from retro_lab.runs.chunk_scores import ChunkScores


class WindowBatch(TypedDict):
    """Windows to score, and the text that they account for."""

    batch: Batch
    windows: Tensor
    """int64 [B]: the number of each window, from which `Windows` knows its document."""
    bytes: Tensor
    """int64 []: UTF-8 bytes of the scored text of documents whose first window is in this batch."""
    documents: Tensor
    """int64 []: the number of these documents."""


class WindowBatches(Protocol):
    """All windows of a text, in batches."""

    def __len__(self) -> int:
        """Return the number of batches."""

    def __getitem__(self, index: int) -> WindowBatch:
        """Read a batch."""


class Windows(Dataset[WindowBatch]):
    """Every window of a set of documents, in batches; item i is the i-th batch."""

    def __init__(self, sequences: Sequences, stride: int, batch_size: int, k: int, max_tokens: float) -> None:
        """Cut the store's documents, in order, into windows until `max_tokens` tokens are covered.

        Args:
            sequences: Reads the windows; a window is as long as its sequences.
            stride: Tokens between windows, a multiple of the chunk length.
            batch_size: Windows in a batch.
            k: Neighbors read for each chunk; the largest k that will be scored.
            max_tokens: Stop before the first document that ends beyond this, but take at least one document.

        Raises:
            ConfigurationError: The stride is not a multiple of the chunk length, or is longer than a window.
        """
        store, length = sequences.store, sequences.length
        check_stride(stride, store.chunk_length, length)
        self.sequences, self.stride, self.batch_size, self.k = sequences, stride, batch_size, k
        covered = np.cumsum(store.document_length)
        self.documents = max(1, int(np.searchsorted(covered, max_tokens, side="right")))
        # A document of T tokens has T - 1 targets, since its first token is the marker. Each window after the first
        # adds `stride` of them.
        predicted = store.document_length[: self.documents] - 1
        counts = 1 + np.maximum(0, -(-(predicted - length) // stride))
        # The first window with the first scored target in it; at least the last one, where there is no such target.
        first = np.maximum(0, -(-(np.asarray(store.scored_from[: self.documents]) - length) // stride))
        first = np.minimum(first, counts - 1)
        counts = counts - first
        self._document = np.repeat(np.arange(self.documents), counts)
        ordinal = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self._starts_document = ordinal == 0
        ordinal = ordinal + np.repeat(first, counts)
        self._offset = ordinal * stride
        new = np.where(ordinal == 0, 1, self._offset - stride + length + 1)
        self._scored_from = np.maximum(new, store.scored_from[self._document])

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._document) // self.batch_size)

    def __getitem__(self, index: int) -> WindowBatch:
        """Read a batch of windows."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.read(np.arange(len(self._document))[index * self.batch_size : (index + 1) * self.batch_size])

    def of_document(self, document: int) -> np.ndarray:
        """Return the numbers of a document's windows, in order."""
        return np.flatnonzero(self._document == document)

    def first_targets(self, windows: np.ndarray) -> np.ndarray:
        """Return where in its document the first target of each window stands; the marker is at 0."""
        return self._offset[windows] + 1

    def read(self, rows: np.ndarray) -> WindowBatch:
        """Read the windows with these numbers; each mask covers the targets that no earlier window of a text scores."""
        document, offset, scored_from = self._document[rows], self._offset[rows], self._scored_from[rows]
        store = self.sequences.store
        batch = self.sequences.read(store.document_start[document] + offset // store.chunk_length, self.k)
        target = offset[:, None] + np.arange(1, self.sequences.length + 1)  # position in the document; the marker is 0
        scored = (target >= scored_from[:, None]) & (target < store.document_length[document][:, None])
        batch["mask"] = torch.from_numpy(scored)
        complete = document[self._starts_document[rows]]
        return WindowBatch(
            batch=batch,
            windows=torch.from_numpy(rows),
            bytes=torch.tensor(int(store.scored_bytes[complete].sum())),
            documents=torch.tensor(len(complete)),
        )

    def chunk_scores(self, score: Score, overlap: np.ndarray | None = None) -> ChunkScores:
        """Add up a score's windows by chunk, in the order of the windows, whichever rank scored them.

        Args:
            score: Of all of these windows.
            overlap: r(C) of each chunk of the store, float32; None where nothing was retrieved.

        Returns:
            What each chunk of the documents takes, in the store's order.
        """
        store = self.sequences.store
        start = np.asarray(store.document_start[: self.documents + 1]).astype(np.int64)
        total, per_window = int(start[-1]), self.sequences.chunks_per_sequence + 1
        numbers = np.atleast_1d(score.windows.cpu().numpy())  # torchmetrics makes a scalar of a text's only window
        # Beyond the end of a document a window has no targets, so what its chunks there are does not matter.
        chunks = (start[self._document] + self._offset // store.chunk_length)[:, None] + np.arange(per_window)

        def by_chunk(values: Tensor) -> np.ndarray:
            # Each window is scored once: what else is added to it is zero, so the order of `numbers` does not matter.
            windows = np.zeros(chunks.shape)
            np.add.at(windows, numbers, values.cpu().numpy())
            return np.bincount(chunks.ravel(), windows.ravel(), minlength=total)[:total]

        return ChunkScores(
            document=np.repeat(np.arange(self.documents), np.diff(start)),
            nats=by_chunk(score.window_nats),
            tokens=by_chunk(score.window_tokens).astype(np.int64),
            bytes=store.chunk_bytes(self.documents),
            overlap=None if overlap is None else np.asarray(overlap[:total]),
            hits=by_chunk(score.window_hits).astype(np.int64) if len(score.window_hits) else None,
        )


class RankWindows(Dataset[WindowBatch]):
    """One rank's share: every `world`-th batch, the same number on each rank.

    A DistributedSampler would even ranks out by repeating batches, which would then count twice. Here a rank that has
    run out gets batches with nothing to score.
    """

    def __init__(self, windows: WindowBatches, rank: int, world: int) -> None:
        """Take batches `rank`, `rank + world`, ... of `windows`."""
        self.windows, self.rank, self.world = windows, rank, world

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.windows) // self.world)

    def __getitem__(self, index: int) -> WindowBatch:
        """Read the rank's `index`-th batch."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = index * self.world + self.rank
        if number < len(self.windows):
            return self.windows[number]
        filler = self.windows[0]
        filler["batch"]["mask"] = torch.zeros_like(filler["batch"]["mask"])
        return WindowBatch(
            batch=filler["batch"], windows=filler["windows"], bytes=torch.tensor(0), documents=torch.tensor(0)
        )
