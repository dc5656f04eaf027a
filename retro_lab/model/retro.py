"""The whole RETRO model (Borgeaud et al. 2022, Algorithm 1), and the baseline transformer, which is RETRO without P.

    H = EMB(X)
    for p in 1 .. L:
        H = ATTN(H)                              causal
        if p = min(P): E = ENCODER(RET, H)       H after this layer's attention, before CCA and FFW
        if p in P: H = CCA(H, E)
        H = FFW(H)
    O = READ(H)

With retrieval off (no neighbors given) the two `if` lines are skipped, and the result equals, bit for bit, that of a
baseline with the same weights. As blocks are pre-norm, a last norm precedes READ; the paper does not mention it.

Shapes: B batch, N sequence length, L = floor(N / M) complete chunks, M chunk length, K neighbors, R neighbor tokens,
D width of the decoder, E width of the encoder, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from retro_lab.model.blocks import Residual
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.decoder import DecoderLayer
from retro_lab.model.distances import DistanceEncoder
from retro_lab.model.encoder import NeighborEncoder
from retro_lab.model.kernels.cross_entropy import most_probable, summed_cross_entropy, token_cross_entropy
from retro_lab.model.kernels.memory_efficient import RMSNorm
from retro_lab.model.sharding import fill
from retro_lab.model.validation import check_model


class RetroModel(nn.Module):
    """RETRO of any size; the baseline transformer if `size.cca_layers` is empty."""

    def __init__(self, size: SizeConfig, model: ModelConfig, vocabulary_size: int) -> None:
        """Create and initialize the model.

        Args:
            size: widths, heads, layers, P and P_enc.
            model: the choices that do not depend on the size.
            vocabulary_size: V.

        Raises:
            ConfigurationError: a value, or a combination of values, that cannot work.
        """
        check_model(size, model, vocabulary_size)
        super().__init__()
        self.width, self.chunk_length = size.width, model.chunk_length
        self.distances = DistanceEncoder(model, size.width, size.head_size)
        self.layer_counts = {"decoder": size.layers, "encoder": size.encoder_layers}
        self.init_std, self.document_masks = model.init_std, model.document_masks
        retrieval_layers = set(size.cca_layers)
        device = torch.empty(0).device  # the default, or that of an enclosing `with torch.device(...)`
        with torch.device("meta"):  # so that weights are drawn once, below, and not first by each module
            self.embedding = nn.Embedding(vocabulary_size, size.width)
            self.layers = nn.ModuleList(
                DecoderLayer(size, model, retrieval=number in retrieval_layers) for number in range(1, size.layers + 1)
            )
            self.norm = RMSNorm(size.width, eps=model.norm_eps)
            self.readout = None if model.tied_readout else nn.Linear(size.width, vocabulary_size, bias=False)
            self.encoder = NeighborEncoder(size, model, vocabulary_size) if retrieval_layers else None
        self.to_empty(device=device)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights anew; this also fills a model built on the meta device, after `to_empty`.

        The paper does not state an initialization. Here weights are normal with standard deviation `init_std`, divided
        by sqrt(2 x layers) at the end of a residual block (as in GPT-2). Retrieval parameters are drawn last, so with
        the same seed a RETRO and a baseline of the same size start from the same decoder.
        """
        retrieval = dict(self.retrieval_parameters())
        others = {name: parameter for name, parameter in self.named_parameters() if name not in retrieval}
        for name, parameter in (others | retrieval).items():
            # Each device draws all numbers of a sharded one, one at a time, and keeps its part: the weights are those
            # that a single process draws.
            sharded = isinstance(parameter, DTensor)
            values = torch.empty(parameter.shape, dtype=parameter.dtype) if sharded else parameter
            if name.endswith("norm.weight"):
                nn.init.ones_(values)
            elif name.endswith("output.weight"):
                layers = self.layer_counts["encoder" if name.startswith("encoder.") else "decoder"]
                nn.init.normal_(values, std=self.init_std / math.sqrt(2 * layers))
            else:
                nn.init.normal_(values, std=self.init_std)
            if sharded:
                fill(parameter, values)

    def checkpoint_activations(self, checkpointed: bool = True) -> None:
        """Keep only each block's input for the backward pass (less memory), or, if False, everything (less time)."""
        for module in self.modules():
            if isinstance(module, Residual):
                module.checkpointed = checkpointed

    def forward(
        self,
        tokens: Tensor,
        neighbors: Tensor | None = None,
        neighbor_lengths: Tensor | None = None,
        documents: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Compute the final hidden states.

        Args:
            tokens: int64 [B, N], any N >= 1.
            neighbors: integers [B, L', K, R] with L' >= L; only those of the L complete chunks are used. R = 2M for
                [N, F], less for N or F alone; positions i' count from the first token given. None turns retrieval off.
            neighbor_lengths: integers [B, L', K], the real tokens of each neighbor, 0 if the neighbor is missing. The
                rest is padding, which nothing attends to. None if all neighbors are full.
            documents: integers [B, N], the document of each token, each document contiguous; required by a model with
                `document_masks`, and refused by any other.
            padding: integers [B], the tokens at the beginning of each sequence that are padding, which no token of the
                text attends to; they may be any number. None if there are none.

        Returns:
            [B, N, D], normalized; arbitrary where a token is padding.

        Raises:
            ValueError: a baseline is given neighbors, documents are missing or given to a model without masks, or
                shapes do not fit together.
        """
        self._check_documents(tokens, documents)
        neighbors, present = self._cut_to_complete_chunks(tokens, neighbors, neighbor_lengths)
        is_text, visible = None, documents
        if padding is not None:
            is_text = torch.arange(tokens.shape[1], device=tokens.device) >= padding[:, None]
            tokens, visible = tokens.masked_fill(~is_text, 0), _apart(is_text, documents)
        hidden, encoded = self.embedding(tokens), None
        to_past = self.distances.to_past(tokens.shape[1], tokens.shape[1], hidden)
        if neighbors is not None:
            m, r = self.chunk_length, neighbors.shape[3]
            to_neighbor = self.distances.between(m, r, m - 1, hidden)
        for layer in cast("Iterable[DecoderLayer]", self.layers):
            hidden = layer.attention(hidden, distances=to_past, documents=visible)
            if layer.cca is not None and neighbors is not None:
                if encoded is None:  # this is layer min(P)
                    encoded = self._encode(neighbors, hidden, present, is_text)
                hidden = layer.cca(hidden, encoded=encoded, distances=to_neighbor, present=present, documents=documents)
            hidden = layer.feed_forward(hidden)
        return cast("Tensor", self.norm(hidden))

    def _check_documents(self, tokens: Tensor, documents: Tensor | None) -> None:
        if self.document_masks != (documents is not None):
            raise ValueError(
                f"A model with model.document_masks={str(self.document_masks).lower()} takes "
                f"{'the document of each token' if self.document_masks else 'no documents'}."
            )
        if documents is not None and documents.shape != tokens.shape:
            raise ValueError(f"documents must be {list(tokens.shape)}, like the tokens, not {list(documents.shape)}.")

    def _cut_to_complete_chunks(
        self, tokens: Tensor, neighbors: Tensor | None, neighbor_lengths: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Check the neighbors and cut them to the complete chunks.

        Returns:
            Neighbors [B, L, K, R], or None if there is nothing to attend to; and bool [B, L, K, R], True where their
            tokens are real, or None if all are.
        """
        if neighbors is None:
            return None, None
        if self.encoder is None:
            raise ValueError(
                "This model has no chunked cross-attention (size.cca_layers is empty), so it takes no neighbors."
            )
        (batch, length), chunks = tokens.shape, tokens.shape[1] // self.chunk_length
        if neighbors.dim() != 4 or neighbors.shape[0] != batch or neighbors.shape[1] < chunks:
            raise ValueError(
                f"Tokens [{batch}, {length}] need neighbors [{batch}, {chunks} or more, k, r] at chunk length "
                f"{self.chunk_length}, not {list(neighbors.shape)}."
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

    def _encode(self, neighbors: Tensor, hidden: Tensor, present: Tensor | None, is_text: Tensor | None) -> Tensor:
        """Encode neighbors [B, L, K, R], given the decoder's H [B, N, D], to [B, L, K, R, E]."""
        assert self.encoder is not None
        chunks = neighbors.shape[1]
        shape = len(hidden), chunks, self.chunk_length
        chunk_states = hidden[:, : chunks * self.chunk_length].view(*shape, self.width)
        chunk_present = None
        if is_text is not None:
            chunk_present = is_text[:, : chunks * self.chunk_length].view(shape)
        neighbors = neighbors.long()
        if present is not None:
            neighbors = neighbors.masked_fill(~present, 0)  # padding may be any number, including -1
        embedding = self.embedding if self.encoder.embedding is None else self.encoder.embedding
        return cast("Tensor", self.encoder(embedding(neighbors), chunk_states, present, chunk_present))

    @property
    def readout_weight(self) -> Tensor:
        """Weight [V, D] of READ: the embedding table if it is tied."""
        return self.embedding.weight if self.readout is None else self.readout.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Read out final hidden states [B, N, D] as logits [B, N, V]."""
        return F.linear(hidden, self.readout_weight)

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
        return token_cross_entropy(hidden.flatten(0, 1), self.readout_weight, targets.flatten()).view(targets.shape)

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
        nats = token_cross_entropy(hidden.flatten(0, 1), self.readout_weight, targets.flatten()).view(targets.shape)
        hits = torch.zeros_like(mask)
        hits[mask] = most_probable(hidden[mask], self.readout_weight) == targets[mask]
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
        return summed_cross_entropy(hidden.flatten(0, 1), self.readout_weight, targets.flatten(), mask.flatten().bool())

    def retrieval_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that a baseline lacks: CCA and encoder. RETROfit trains only these."""
        for name, parameter in self.named_parameters():
            if name.startswith("encoder.") or ".cca." in name:
                yield name, parameter

    def parameter_counts(self) -> dict[str, int]:
        """Count parameters by part; works on the meta device.

        Returns:
            `decoder`, `chunked_cross_attention`, `encoder` and `embeddings` (all tables of V rows, including an untied
            read-out), which add up to `total`; and `non_embedding`, the count of Table 2.
        """
        counts = dict.fromkeys(("decoder", "chunked_cross_attention", "encoder", "embeddings"), 0)
        for name, parameter in self.named_parameters():
            if name.endswith("embedding.weight") or name == "readout.weight":
                part = "embeddings"
            elif name.startswith("encoder."):
                part = "encoder"
            else:
                part = "chunked_cross_attention" if ".cca." in name else "decoder"
            counts[part] += parameter.numel()
        total = sum(counts.values())
        return counts | {"total": total, "non_embedding": total - counts["embeddings"]}


def _apart(is_text: Tensor, documents: Tensor | None) -> Tensor:
    """Return documents [B, N] in which the padding of a sequence is a document of its own.

    Attention is kept within documents. In this way padding attends to padding, so that no token is without keys.
    """
    if documents is None:
        return is_text.long()
    return documents.masked_fill(~is_text, -1)
