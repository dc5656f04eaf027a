"""What a model reads: sequences of chunks, their targets, and the neighbors of each chunk.

Training and evaluation both read their tensors here, so neighbors are cut, masked and aligned in one place.
"""

from typing import Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor

from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ArtifactError
from retro_lab.retrieval.config import Value, check_length
from retro_lab.retrieval.neighbors import NO_NEIGHBOR


class Batch(TypedDict):
    """B sequences of n tokens in l chunks, each chunk with k neighbors of r tokens.

    Token ids keep the store's type, a quarter or half of int64, until they are on the device (`to_int64`).
    """

    tokens: Tensor
    """[B, n]."""
    targets: Tensor
    """[B, n]: the token that follows each."""
    mask: Tensor
    """bool [B, n]: whether the target is text, not a document marker or padding."""
    neighbors: Tensor
    """[B, l, k, r]."""
    neighbor_lengths: Tensor
    """int64 [B, l, k]: real tokens of each neighbor; 0 if there is none."""
    documents: Tensor
    """int64 [B, n]: the document of each token; empty unless requested."""
    padding: Tensor
    """int64 [B]: tokens at the beginning of each sequence that are padding; empty if there are none."""


class Readable(Protocol):
    """Sequences to train on, each known by the number of its first chunk."""

    chunks_per_sequence: int
    length: int

    def __len__(self) -> int:
        """Return how many whole sequences there are, one after the other."""

    def read(self, first_chunks: np.ndarray, k: int) -> Batch:
        """Read the sequences that start at `first_chunks`, [B], with k neighbors for each chunk."""

    def is_text(self, first_chunks: np.ndarray) -> np.ndarray:
        """Return which targets of these sequences count in the loss, bool [B, n]."""

    def document_ids(self, first_chunks: np.ndarray) -> list[str]:
        """Return the ids of the documents in these sequences."""


class Retrieved:
    """Neighbors of the chunks of a token store, as tokens of a database store."""

    def __init__(self, database: TokenStore, ids: np.ndarray, values: Value, *, reveals: bool = False) -> None:
        """Look neighbors up in `ids`, [chunks, K], sorted by distance, and return what `values` names (Sec. 2.1).

        With `reveals`, a sequence may retrieve what it holds or predicts, as it does from the oracle alone.
        """
        self.database = database
        self.reveals = reveals
        self.ids = np.asarray(ids)
        self.values = values
        self.span = 1 if values is Value.neighbor else 2
        """Chunks that a neighbor is read from: its own and, unless `values` leaves it out, the one that follows."""

    def read(
        self, chunks: np.ndarray, k: int, without: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens [..., k, r] and lengths [..., k] of the k nearest neighbors of each chunk.

        A missing neighbor has length 0; its tokens are arbitrary and always masked.

        Args:
            chunks: Chunks whose neighbors to read, [...].
            k: Neighbors of each.
            without: First and last chunk of a range, each broadcast against `chunks`; neighbors that overlap it are
                skipped, and the next nearest take their place.

        Raises:
            ArtifactError: An id is not that of a chunk of the database.
        """
        ids = np.take(self.ids, chunks, axis=0, mode="clip")[..., :k]
        if ids.max(initial=NO_NEIGHBOR) >= self.database.chunks or ids.min(initial=NO_NEIGHBOR) < NO_NEIGHBOR:
            raise ArtifactError(
                f"The neighbors are damaged (chunk {ids.flat[np.argmax(np.abs(ids))]} of {self.database.chunks}); "
                "run task=verify, delete what it names, and run the same command again."
            )
        if without is not None:
            ids = self._without(ids, chunks, *without)
        present = (ids != NO_NEIGHBOR) & (chunks < len(self.ids))[..., None]
        m = self.database.chunk_length
        tokens = self.database.read(ids, self.span)
        lengths = self.database.real_tokens(ids, self.span)
        if self.values is Value.continuation:
            tokens, lengths = tokens[..., m:], np.maximum(lengths - m, 0)
        return tokens, np.where(present, lengths, 0)

    def _without(self, ids: np.ndarray, chunks: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return each chunk's nearest neighbors outside the range, given the nearest of all, `ids`.

        Few chunks have neighbors inside it, so all stored neighbors are read for those few only.
        """
        first = first - self.span + 1
        inside = (ids >= first[..., None]) & (ids <= last[..., None])
        if not inside.any():
            return ids
        first, last = (np.broadcast_to(bound, chunks.shape) for bound in (first, last))
        rows = inside.any(-1)
        stored = np.take(self.ids, chunks[rows], axis=0, mode="clip")
        kept = (stored < first[rows][:, None]) | (stored > last[rows][:, None])
        order = np.argsort(~kept, axis=1, kind="stable")[:, : ids.shape[-1]]
        ids = ids.copy()
        ids[rows] = np.where(np.take_along_axis(kept, order, 1), np.take_along_axis(stored, order, 1), NO_NEIGHBOR)
        return ids


class Sequences:
    """Reads batches of sequences from a token store; `retrieved` is None for a model without retrieval.

    If the store is also the database, no chunk retrieves from its own sequence. Searches drop neighbors in the query's
    own group, but a sequence may contain several documents, and a later neighbor in it would reveal tokens that are
    still to be predicted.
    """

    def __init__(
        self, store: TokenStore, retrieved: Retrieved | None, length: int, *, with_documents: bool = False
    ) -> None:
        """Read sequences of `length` tokens; `with_documents` for a model that masks other documents.

        Raises:
            ConfigurationError: `length` is not a multiple of the chunk length.
        """
        check_length(length, store.chunk_length)
        self.store = store
        self.retrieved = retrieved
        self.length = length
        self.with_documents = with_documents
        self.chunks_per_sequence = length // store.chunk_length
        self._from_itself = (
            retrieved is not None
            and not retrieved.reveals
            and retrieved.database.artifact.fingerprint == store.artifact.fingerprint
        )

    def __len__(self) -> int:
        """Return how many whole sequences the store has."""
        return self.store.chunks // self.chunks_per_sequence

    def document_ids(self, first_chunks: np.ndarray) -> list[str]:
        """Return the ids of the documents in these sequences."""
        chunks = first_chunks[:, None] + np.arange(self.chunks_per_sequence)
        return self.store.document_ids(np.unique(self.store.document_of(chunks)))

    def read(self, first_chunks: np.ndarray, k: int) -> Batch:
        """Read the sequences that start at `first_chunks`, [B], with k neighbors for each chunk."""
        chunks = first_chunks[:, None] + np.arange(self.chunks_per_sequence)
        tokens = torch.from_numpy(self.store.read(first_chunks, self.chunks_per_sequence + 1))
        batch = Batch(
            tokens=tokens[:, : self.length],
            targets=tokens[:, 1 : self.length + 1],
            mask=torch.from_numpy(self.is_text(first_chunks)),
            neighbors=torch.empty(0),
            neighbor_lengths=torch.empty(0),
            documents=torch.empty(0),
            padding=torch.empty(0),
        )
        if self.with_documents:
            documents = self.store.document_of(chunks).repeat(self.store.chunk_length, axis=1)
            batch["documents"] = torch.from_numpy(documents)
        if self.retrieved is None or k == 0:
            return batch
        # The last target is the first token of the chunk that follows the sequence.
        own = (first_chunks[:, None], first_chunks[:, None] + self.chunks_per_sequence) if self._from_itself else None
        neighbors, lengths = self.retrieved.read(chunks, k, own)
        batch["neighbors"] = torch.from_numpy(neighbors)
        batch["neighbor_lengths"] = torch.from_numpy(lengths)
        return batch

    def is_text(self, first_chunks: np.ndarray) -> np.ndarray:
        """Return which of the n targets from each first chunk on are text, not markers or padding; [B, n]."""
        chunks = first_chunks[:, None] + np.arange(self.chunks_per_sequence + 1)
        small = np.min_scalar_type(self.store.chunk_length)  # more numbers of one byte are compared at once
        places = np.arange(self.store.chunk_length, dtype=small)
        text = places < self.store.real_tokens(chunks).astype(small)[..., None]
        text[..., 0] &= ~self.store.starts_document(chunks)  # the document marker
        return text.reshape(len(chunks), -1)[:, 1 : self.length + 1]


def to_int64(batch: Batch) -> Batch:
    """Return the batch with token ids as int64, which the model needs; call it on the device."""
    return Batch(
        tokens=batch["tokens"].long(),
        targets=batch["targets"].long(),
        mask=batch["mask"],
        neighbors=batch["neighbors"].long(),
        neighbor_lengths=batch["neighbor_lengths"],
        documents=batch["documents"],
        padding=batch["padding"],
    )


def neighbors_of(batch: Batch, k: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the k nearest neighbors of a batch and their lengths, as the model takes them; None for k = 0."""
    if k == 0 or batch["neighbors"].numel() == 0:
        return None, None
    return batch["neighbors"][:, :, :k], batch["neighbor_lengths"][:, :, :k]


def documents_of(batch: Batch) -> Tensor | None:
    """Return the document of each token of a batch, as the model takes it; None if not requested."""
    return batch["documents"] if batch["documents"].numel() else None


def padding_of(batch: Batch) -> Tensor | None:
    """Return the padding at the beginning of each sequence of a batch, as the model takes it; None if there is none."""
    return batch["padding"] if batch["padding"].numel() else None
