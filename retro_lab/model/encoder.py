"""The neighbor encoder (Borgeaud et al. 2022, Algorithm 1): RET(C_u)^j, conditioned on the chunk that retrieved it.

    for each neighbor j of each chunk u, with shared weights:
        E = EMB_enc(RET(C_u)^j)
        for p' in 1 .. L_enc:
            E = ATTN_enc(E)                       bidirectional
            if p' in P_enc: E = CA_enc(E, H_u)    queries: neighbor tokens; keys, values: the chunk's activations
            E = FFW_enc(E)

Two norms are not in the paper. The residual stream H_u is normalized before it becomes keys and values, and so is the
encoder's result. Otherwise the projections that read them would see an unnormalized, growing stream.

Shapes: B batch, L chunks, M chunk length, K neighbors, R neighbor tokens, D width of the decoder, E width of the
encoder.
"""

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from retro_lab.model.attention import CrossAttention, SelfAttention
from retro_lab.model.blocks import FeedForward, Residual
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.distances import DistanceEncoder
from retro_lab.model.kernels.memory_efficient import RMSNorm


class EncoderLayer(nn.Module):
    """One layer of the encoder; `cross_attention` is None outside P_enc."""

    def __init__(self, size: SizeConfig, model: ModelConfig, *, conditioned: bool) -> None:
        """Create the blocks.

        Args:
            size: widths and heads.
            model: positions, activation, norm and dropout.
            conditioned: whether this layer attends to H_u.
        """
        super().__init__()
        width, heads, head_size = size.encoder_width, size.encoder_heads, size.encoder_head_size
        residual = (width, model.norm_eps, model.dropout)
        positions = model.positions
        self.attention = Residual(SelfAttention(width, heads, head_size, causal=False, positions=positions), *residual)
        self.cross_attention: Residual | None = None
        if conditioned:
            cross_attention = CrossAttention(width, size.width, heads, head_size, positions=positions)
            self.cross_attention = Residual(cross_attention, *residual)
        self.feed_forward = Residual(FeedForward(width, size.encoder_ffw_width, model.activation), *residual)


class NeighborEncoder(nn.Module):
    """ENCODER of Algorithm 1. It encodes every neighbor by itself, given the chunk that retrieved it."""

    def __init__(self, size: SizeConfig, model: ModelConfig, vocabulary_size: int) -> None:
        """Create the layers, and the embedding unless it is shared with the decoder.

        Args:
            size: widths, heads, layers, P_enc.
            model: query conditioning, shared embeddings, and the choices that `EncoderLayer` takes.
            vocabulary_size: entries of the embedding table.
        """
        super().__init__()
        self.width = size.encoder_width
        self.distances = DistanceEncoder(model, self.width, size.encoder_head_size)
        self.embedding = None if model.shared_embeddings else nn.Embedding(vocabulary_size, self.width)
        conditioned = set(size.encoder_ca_layers) if model.query_conditioning else set()
        self.chunk_norm = RMSNorm(size.width, eps=model.norm_eps) if conditioned else None
        self.layers = nn.ModuleList(
            EncoderLayer(size, model, conditioned=number in conditioned) for number in range(1, size.encoder_layers + 1)
        )
        self.norm = RMSNorm(self.width, eps=model.norm_eps)

    def forward(
        self, embedded: Tensor, chunk_states: Tensor, present: Tensor | None, chunk_present: Tensor | None = None
    ) -> Tensor:
        """Encode all neighbors of all chunks at once.

        Args:
            embedded: [B, L, K, R, E], embedded neighbor tokens.
            chunk_states: [B, L, M, D], the H_u: the decoder's activations after the attention of layer min(P).
            present: bool [B, L, K, R], False where a token is padding; None if there is no padding.
            chunk_present: bool [B, L, M], the same for the tokens of the chunks.

        Returns:
            [B, L, K, R, E]. Padding tokens get arbitrary finite vectors.
        """
        neighbor_length, chunk_length = embedded.shape[3], chunk_states.shape[2]
        present = None if present is None else present.flatten(0, 2)
        chunk_present = None if chunk_present is None else chunk_present.flatten(0, 1).unsqueeze(1)  # [BL, 1, M]
        within = self.distances.between(neighbor_length, neighbor_length, 0, embedded)
        if self.chunk_norm is not None:
            to_chunk = self.distances.between(neighbor_length, chunk_length, 0, embedded)
            chunk_states = self.chunk_norm(chunk_states.flatten(0, 1)).unsqueeze(1)  # [BL, 1, M, D]
        hidden = embedded.flatten(0, 2)  # every neighbor by itself, [BLK, R, E]
        for layer in cast("Iterable[EncoderLayer]", self.layers):
            hidden = layer.attention(hidden, distances=within, present=present)
            if layer.cross_attention is not None:
                # The K neighbors of a chunk are K blocks of queries, [BL, K, R, E], that attend to the one chunk.
                hidden = hidden.view(embedded.flatten(0, 1).shape)
                hidden = layer.cross_attention(
                    hidden, context=chunk_states, distances=to_chunk, present=chunk_present
                ).flatten(0, 1)
            hidden = layer.feed_forward(hidden)
        return cast("Tensor", self.norm(hidden)).view(embedded.shape)
