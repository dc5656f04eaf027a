"""What training, scoring and generation ask of a language model with retrieval, whatever its decoder.

Shapes: B batch, N sequence length, L = floor(N / M) complete chunks, M chunk length, K neighbors, R neighbor tokens,
D width of the decoder, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from retro_lab.model.blocks import Branch
from retro_lab.model.cache import Cache
from retro_lab.model.distances import DistanceEncoder
from retro_lab.model.encoder import NeighborEncoder
from retro_lab.model.kernels.cross_entropy import Readout, most_probable, summed_cross_entropy, token_cross_entropy
from retro_lab.model.neighbors import NextNeighbors, RetrievedNeighbors, cut_to_complete_chunks


class LanguageModel(nn.Module, ABC):
    """A decoder that may attend to encoded neighbors; a baseline has no encoder.

    Attributes:
        width: D.
        chunk_length: M.
        document_masks: whether attention and neighbors are kept within a document.
        distances: encodes distances for the attentions of the decoder.
        encoder: encodes neighbors; None for a baseline.
        embedding: of the decoder's tokens.
    """

    width: int
    chunk_length: int
    document_masks: bool
    distances: DistanceEncoder
    encoder: NeighborEncoder | None
    embedding: nn.Embedding

    @abstractmethod
    def forward(
        self,
        tokens: Tensor,
        neighbors: Tensor | None = None,
        neighbor_lengths: Tensor | None = None,
        documents: Tensor | None = None,
        padding: Tensor | None = None,
        cache: Cache | None = None,
        windows: Sequence[bool] | None = None,
    ) -> Tensor:
        """Compute the final hidden states.

        With a cache, `tokens` are the next ones of the cache's sequences, and B and N count those alone.

        Args:
            tokens: int64 [B, N], any N >= 1.
            neighbors: integers [B, L', K, R] with L' >= L; only those of the L complete chunks are used. R = 2M for
                [N, F], less for N or F alone; positions i' count from the first token given. None turns retrieval off.
            neighbor_lengths: integers [B, L', K], the real tokens of each neighbor, 0 if the neighbor is missing. The
                rest is padding, which nothing attends to. None if all neighbors are full.
            documents: integers [B, N], the document of each token, each document contiguous; required by a model with
                `document_masks`, and refused by any other.
            padding: integers [B], the tokens at the beginning of each sequence that are padding, which no token of the
                text attends to; they may be any number. None if there are none. With a cache, only in the first call.
            cache: what is known of the tokens before these; it is updated. Gradients do not flow through it. Neighbors
                are then those of the chunks that these tokens complete (`Cache.completed`), L the most of any sequence;
                those of a sequence with fewer come first, and the rest is not read. A chunk attends to no neighbors if
                none are given. `documents` must be None: a sequence is one document.
            windows: only with a cache, to retrieve at any token: whether each sequence retrieves with the window of its
                last M tokens (fewer if it has fewer) that ends with the first token of this call. Its neighbors
                [B, 1, K, R] are attended to by that token and the M - 1 after it, unless others take their place.
                The other sequences keep theirs, and complete chunks change nothing. None to retrieve by chunks.

        Returns:
            [B, N, D], normalized; arbitrary where a token is padding.

        Raises:
            ValueError: a baseline is given neighbors, documents are missing or given to a model without masks, or
                shapes do not fit together.
        """

    @abstractmethod
    def empty_cache(self, *, padding_in_grid: bool = False) -> Cache:
        """Return a cache of no tokens, of any number of sequences.

        Args:
            padding_in_grid: whether the first chunk begins with the padding of a sequence rather than behind it.
        """

    @property
    @abstractmethod
    def readout_weight(self) -> Tensor:
        """Weight [V, D] of READ: the embedding table if it is tied."""

    @property
    def head(self) -> Readout:
        """READ, with everything that comes after the product with its weight."""
        return Readout(self.readout_weight)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw all weights anew; this also fills a model built on the meta device, after `to_empty`."""

    def checkpoint_activations(self, checkpointed: bool = True) -> None:
        """Keep only each block's input for the backward pass (less memory), or, if False, everything (less time)."""
        for module in self.modules():
            if isinstance(module, Branch):
                module.checkpointed = checkpointed

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the blocks that need their weights one after the other; a sharded model gathers each by itself."""
        yield from (module for module in self.modules() if isinstance(module, Branch))

    def logits(self, hidden: Tensor) -> Tensor:
        """Read out final hidden states [B, N, D] as logits [B, N, V]."""
        return self.head.logits(hidden)

    def target_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of targets, int64 [T], after final hidden states [T, D]: [T] nats, float32 or better."""
        return token_cross_entropy(hidden, self.head, targets)

    def token_losses(
        self,
        tokens: Tensor,
        targets: Tensor,
        neighbors: Tensor | None = None,
        neighbor_lengths: Tensor | None = None,
        documents: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of each target token.

        Args:
            tokens: as in `forward`.
            targets: int64 [B, N], the token after each token.
            neighbors: as in `forward`.
            neighbor_lengths: as in `forward`.
            documents: as in `forward`.
            padding: as in `forward`.

        Returns:
            [B, N] nats, float32 (float64 for a float64 model).
        """
        hidden = self(tokens, neighbors, neighbor_lengths, documents, padding)
        return self.target_losses(hidden.flatten(0, 1), targets.flatten()).view(targets.shape)

    def token_losses_and_hits(
        self,
        tokens: Tensor,
        targets: Tensor,
        mask: Tensor,
        neighbors: Tensor | None = None,
        neighbor_lengths: Tensor | None = None,
        documents: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each target token, and whether it is the most probable one.

        Args:
            tokens: as in `forward`.
            targets: int64 [B, N], the token after each token.
            mask: bool [B, N], True where a hit counts.
            neighbors: as in `forward`.
            neighbor_lengths: as in `forward`.
            documents: as in `forward`.
            padding: as in `forward`.

        Returns:
            [B, N] nats, as `token_losses` returns them, and bool [B, N], False where the mask is False.
        """
        hidden = self(tokens, neighbors, neighbor_lengths, documents, padding)
        nats = self.target_losses(hidden.flatten(0, 1), targets.flatten()).view(targets.shape)
        hits = torch.zeros_like(mask)
        hits[mask] = most_probable(hidden[mask], self.head) == targets[mask]
        return nats, hits

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        mask: Tensor,
        neighbors: Tensor | None = None,
        neighbor_lengths: Tensor | None = None,
        documents: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy summed over the targets that count; the caller normalizes.

        Args:
            tokens: as in `forward`.
            targets: int64 [B, N]; anything where the mask is False.
            mask: bool [B, N], True where a target counts.
            neighbors: as in `forward`.
            neighbor_lengths: as in `forward`.
            documents: as in `forward`.
            padding: as in `forward`.

        Returns:
            Scalar, nats, float32 (float64 for a float64 model).
        """
        hidden = self(tokens, neighbors, neighbor_lengths, documents, padding)
        return summed_cross_entropy(hidden.flatten(0, 1), self.head, targets.flatten(), mask.flatten().bool())

    def retrieval_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that a baseline lacks: CCA and encoder. RETROfit trains only these."""
        for name, parameter in self.named_parameters():
            if name.startswith("encoder.") or ".cca." in f".{name}":
                yield name, parameter

    def parameter_counts(self) -> dict[str, int]:
        """Count parameters by part; works on the meta device.

        Returns:
            `decoder`, `chunked_cross_attention`, `encoder` and `embeddings` (all tables of V rows, including an untied
            read-out), which add up to `total`; and `non_embedding`, the count of Table 2.
        """
        counts = dict.fromkeys(("decoder", "chunked_cross_attention", "encoder", "embeddings"), 0)
        for name, parameter in self.named_parameters():
            if self.is_table(name, parameter):
                part = "embeddings"
            elif name.startswith("encoder."):
                part = "encoder"
            else:
                part = "chunked_cross_attention" if ".cca." in f".{name}" else "decoder"
            counts[part] += parameter.numel()
        total = sum(counts.values())
        return counts | {"total": total, "non_embedding": total - counts["embeddings"]}

    def is_table(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether a parameter is an embedding table of V rows, or an untied read-out."""
        return name.endswith("embedding.weight") or name == "readout.weight"

    def _check_documents(self, tokens: Tensor, documents: Tensor | None) -> None:
        if self.document_masks != (documents is not None):
            raise ValueError(
                f"A model with model.document_masks={str(self.document_masks).lower()} takes "
                f"{'the document of each token' if self.document_masks else 'no documents'}."
            )
        if documents is not None and documents.shape != tokens.shape:
            raise ValueError(f"documents must be {list(tokens.shape)}, like the tokens, not {list(documents.shape)}.")

    def _retrieved(
        self,
        tokens: Tensor,
        neighbors: Tensor | None,
        neighbor_lengths: Tensor | None,
        documents: Tensor | None,
        is_text: Tensor | None,
        cache: Cache | None = None,
        windows: Sequence[bool] | None = None,
    ) -> RetrievedNeighbors | None:
        """Return the neighbors of a batch, as `forward` is given them; None if there is nothing to attend to."""
        if windows is not None and (cache is None or (neighbors is None and any(windows))):
            raise ValueError("Windows are for a model with a cache, and need neighbors.")
        if neighbors is None and (cache is None or self.encoder is None):
            return None
        if self.encoder is None:
            raise ValueError(
                "This model has no chunked cross-attention (size.cca_layers is empty), so it takes no neighbors."
            )
        chunks = tokens.shape[1] // self.chunk_length
        if cache is not None:
            chunks = max(cache.completed(tokens.shape[1])) if windows is None else 1
        neighbors, present = cut_to_complete_chunks(tokens, neighbors, neighbor_lengths, self.chunk_length, chunks)
        if cache is not None:
            return NextNeighbors(
                self.encoder, self.embedding, self.distances, cache, tokens, neighbors, present, windows
            )
        if neighbors is None:
            return None
        return RetrievedNeighbors(
            self.encoder,
            self.embedding,
            self.distances,
            self.chunk_length,
            neighbors,
            present,
            documents=documents,
            is_text=is_text,
        )
