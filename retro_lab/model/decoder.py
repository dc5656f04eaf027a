"""One layer of the decoder (Borgeaud et al. 2022, section 2.4): ATTN, then CCA where p is in P, then FFW.

p in P      RETRO(H, E) = FFW(CCA(ATTN(H), E))
else        LM(H) = FFW(ATTN(H))
"""

from torch import nn

from retro_lab.model.attention import SelfAttention
from retro_lab.model.blocks import FeedForward, Residual
from retro_lab.model.chunked_cross_attention import ChunkedCrossAttention
from retro_lab.model.config import ModelConfig, SizeConfig


class DecoderLayer(nn.Module):
    """The blocks of one decoder layer, in the order in which the model calls them.

    The layer has no `forward` of its own, because the encoder runs between two of its blocks. The model calls the
    blocks itself, and sharding (FSDP) or activation checkpointing wraps blocks rather than layers. The model makes only
    these three calls, so another decoder can be RETROfitted with a layer class that has the same three attributes.

    Attributes:
        attention: ATTN, `attention(hidden, distances=..., documents=..., past=...)`.
        cca: CCA, `cca(hidden, encoded=..., distances=..., present=..., documents=...)`; None outside P.
        feed_forward: FFW, `feed_forward(hidden)`.
    """

    def __init__(self, size: SizeConfig, model: ModelConfig, *, retrieval: bool) -> None:
        """Create the blocks.

        Args:
            size: widths and heads.
            model: chunk length, positions, activation, norm and dropout.
            retrieval: whether this layer is in P.
        """
        super().__init__()
        width, heads, head_size = size.width, size.heads, size.head_size
        residual = (width, model.norm_eps, model.dropout)
        self.attention = Residual(
            SelfAttention(width, heads, head_size, causal=True, positions=model.positions), *residual
        )
        self.cca: Residual | None = None
        if retrieval:
            cca = ChunkedCrossAttention(
                width,
                size.encoder_width,
                heads,
                head_size,
                model.chunk_length,
                positions=model.positions,
                use_positions=model.cca_positions,
            )
            self.cca = Residual(cca, *residual)
        self.feed_forward = Residual(FeedForward(width, size.ffw_width, model.activation), *residual)
