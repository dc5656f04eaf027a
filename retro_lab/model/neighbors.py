"""The neighbors of one forward pass (Borgeaud et al. 2022, Algorithm 1): encoded once, then attended to.

    if p = min(P): E = ENCODER(RET, H)       H after this layer's attention, before CCA and FFW
    if p in P:     H = CCA(H, E)

Whoever runs the layers calls `attend` in each layer of P, after its attention; the first call is that of min(P).

Shapes: B batch, N sequence length, L = floor(N / M) complete chunks, M chunk length, K neighbors, R neighbor tokens,
D width of the decoder, E width of the encoder.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from retro_lab.model.blocks import Branch
from retro_lab.model.cache import Cache
from retro_lab.model.distances import DistanceEncoder, Distances
from retro_lab.model.encoder import NeighborEncoder
from retro_lab.model.neighbor_cache import Arrival


class RetrievedNeighbors:
    """The neighbors of the complete chunks of a batch."""

    def __init__(
        self,
        encoder: NeighborEncoder,
        embedding: nn.Embedding,
        distances: DistanceEncoder,
        chunk_length: int,
        neighbors: Tensor,
        present: Tensor | None,
        *,
        documents: Tensor | None = None,
        is_text: Tensor | None = None,
    ) -> None:
        """Keep the neighbors; they are encoded once the decoder's states are known.

        Args:
            encoder: of the model.
            embedding: of the decoder, for an encoder that has none of its own.
            distances: of the decoder's stream.
            chunk_length: M.
            neighbors: integers [B, L, K, R].
            present: bool [B, L, K, R], False where a token is padding; None if there is no padding.
            documents: integers [B, N], the document of each token, to keep neighbors within the retrieving document.
            is_text: bool [B, N], False where a token of the sequence is padding; None if none is.
        """
        self._encoder, self._distances, self._chunk_length = encoder, distances, chunk_length
        self._decoder_embedding = embedding
        self._neighbors, self._present = neighbors, present
        self._documents, self._is_text = documents, is_text
        self._encoded: Tensor | None = None
        self._to_neighbor: Distances | None = None

    def attend(self, cca: Branch, hidden: Tensor) -> Tensor | None:
        """Call a layer's CCA.

        Args:
            cca: of the layer.
            hidden: H after the layer's attention, [B, N, D].

        Returns:
            What `cca` returns, [B, N, D]: the new H for a residual block, or what is to be added to H for a branch.
            None if no token attends to any neighbor: H stays what it is.
        """
        if self._encoded is None:
            self._encoded = self._encode(hidden)
            m, r = self._chunk_length, self._neighbors.shape[3]
            self._to_neighbor = self._distances.between(m, r, m - 1, hidden)
        return cast(
            "Tensor",
            cca(
                hidden,
                encoded=self._encoded,
                distances=self._to_neighbor,
                present=self._present,
                documents=self._documents,
            ),
        )

    def _encode(self, hidden: Tensor) -> Tensor:
        """Encode the neighbors, given the decoder's H [B, N, D], to [B, L, K, R, E]."""
        chunks = self._neighbors.shape[1]
        shape = len(hidden), chunks, self._chunk_length
        length = chunks * self._chunk_length
        chunk_states = hidden[:, :length].view(*shape, hidden.shape[2])
        chunk_present = None if self._is_text is None else self._is_text[:, :length].view(shape)
        return self._encode_for(chunk_states, chunk_present)

    def _encode_for(self, chunk_states: Tensor, chunk_present: Tensor | None) -> Tensor:
        """Encode the neighbors, given the states H_u [B, L, M, D] of the chunks."""
        neighbors = self._neighbors.long()
        if self._present is not None:
            neighbors = neighbors.masked_fill(~self._present, 0)  # padding may be any number, including -1
        embedding = self._decoder_embedding if self._encoder.embedding is None else self._encoder.embedding
        return cast("Tensor", self._encoder(embedding(neighbors), chunk_states, self._present, chunk_present))


class NextNeighbors(RetrievedNeighbors):
    """The neighbors of the next tokens of a cache: new ones, and those that the cache has of earlier calls."""

    def __init__(
        self,
        encoder: NeighborEncoder,
        embedding: nn.Embedding,
        distances: DistanceEncoder,
        cache: Cache,
        tokens: Tensor,
        neighbors: Tensor | None,
        present: Tensor | None,
        windows: Sequence[bool] | None,
    ) -> None:
        """Tell the cache which neighbors are new.

        Args:
            encoder: of the model.
            embedding: of the decoder, for an encoder that has none of its own.
            distances: of the decoder's stream.
            cache: of the tokens before these, with the padding of these.
            tokens: [B, Q].
            neighbors: integers [B, C, K, R]; None if there are none.
            present: bool [B, C, K, R], False where a token is padding; None if there is no padding.
            windows: as `LanguageModel.forward` takes them.
        """
        assert cache.neighbors is not None
        self._cache, self._kept, self._is_begun = cache, cache.neighbors, False
        self._arrivals: list[Arrival] = []
        if neighbors is not None:
            places: Sequence[Sequence[int]] = cache.chunk_ends(tokens.shape[1])
            if windows is not None:
                if len(windows) != len(tokens):
                    raise ValueError(f"{len(tokens)} sequences need as many windows, not {len(windows)}.")
                places = [[cache.length] if retrieves else [] for retrieves in windows]
            self._arrivals = [Arrival(row, at, i) for row, of_row in enumerate(places) for i, at in enumerate(of_row)]
        found = None
        if neighbors is not None and self._arrivals:
            index = [arrival.row for arrival in self._arrivals], [arrival.number for arrival in self._arrivals]
            found, present = neighbors[index], None if present is None else present[index]
        else:
            present = None
        self._step = self._kept.step(self._arrivals, found, present, tokens, cache.length)
        of_arrivals = tokens[:0, None, None] if found is None else found  # [n, K, R]
        present = None if present is None else present[None]
        super().__init__(encoder, embedding, distances, cache.chunk_length, of_arrivals[None], present)

    def attend(self, cca: Branch, hidden: Tensor) -> Tensor | None:
        """Call a layer's CCA, as `RetrievedNeighbors.attend` says."""
        if not self._is_begun:
            self._is_begun = True
            conditions = self._kept.read(hidden, self._arrivals, self._cache.padding, self._cache.length)
            if conditions is not None:
                self._encoded = self._encode_for(*conditions)[0]
            if self._step.attends_to_any:
                self._to_neighbor = self._kept.distances(self._distances, hidden)
        if not self._step.attends_to_any:
            return None
        return cast("Tensor", cca(hidden, encoded=self._encoded, distances=self._to_neighbor, step=self._step))


def cut_to_complete_chunks(
    tokens: Tensor, neighbors: Tensor | None, neighbor_lengths: Tensor | None, chunk_length: int, chunks: int
) -> tuple[Tensor | None, Tensor | None]:
    """Check the neighbors and cut them to the complete chunks.

    Args:
        tokens: [B, N].
        neighbors: as `LanguageModel.forward` takes them.
        neighbor_lengths: as `LanguageModel.forward` takes them.
        chunk_length: M.
        chunks: L.

    Returns:
        Neighbors [B, L, K, R], or None if there is nothing to attend to; and bool [B, L, K, R], True where their
        tokens are real, or None if all are.

    Raises:
        ValueError: Shapes do not fit together.
    """
    if neighbors is None:
        return None, None
    batch, length = tokens.shape
    if neighbors.dim() != 4 or neighbors.shape[0] != batch or neighbors.shape[1] < chunks:
        raise ValueError(
            f"Tokens [{batch}, {length}] need neighbors [{batch}, {chunks} or more, k, r] at chunk length "
            f"{chunk_length}, not {list(neighbors.shape)}."
        )
    if neighbor_lengths is not None and neighbor_lengths.shape != neighbors.shape[:3]:
        raise ValueError(
            f"neighbor_lengths must be {list(neighbors.shape[:3])} for neighbors {list(neighbors.shape)}, "
            f"not {list(neighbor_lengths.shape)}."
        )
    neighbors = neighbors[:, :chunks]
    if neighbors.numel() == 0:
        return None, None
    if neighbor_lengths is None:
        return neighbors, None
    place = torch.arange(neighbors.shape[3], device=neighbors.device)
    return neighbors, place < neighbor_lengths[:, :chunks, :, None]
