"""Chunked cross-attention, CCA (Borgeaud et al. 2022, section 2.4 and Listing 1): where neighbors enter the decoder.

The neighbors of chunk u may be used only once all of chunk u is known. The last token of the chunk is the first that
knows all of it, and it predicts the token after the chunk. The chunk that attends to RET(C_u) is therefore C_{u+1}
shifted left by one token. With M = 4:

    token          1   2   3   4   5   6   7   8   9  10  11  12
    chunk        [     C_1      ][     C_2      ][     C_3      ]
    attends to     -   -   - [   RET(C_1)   ][   RET(C_2)   ][ RET(C_3) ...

Token 4 is the last of C_1, and its output predicts token 5. The first M - 1 tokens pass unchanged. The last attending
chunk has the remaining tokens of the sequence, from 1 (N a multiple of M) to M.

Shapes: B batch, N sequence length, Q tokens from an offset to the end, L complete chunks, M chunk length, K neighbors,
R neighbor tokens, D width of the decoder, E width of the encoder.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from retro_lab.model.attention import CrossAttention
from retro_lab.model.distances import Distances
from retro_lab.model.neighbor_cache import Step


class ChunkedCrossAttention(nn.Module):
    """CCA without its residual: zeros where a token has no neighbors to attend to."""

    def __init__(
        self,
        width: int,
        encoder_width: int,
        heads: int,
        head_size: int,
        chunk_length: int,
        *,
        positions: str,
        use_positions: bool,
    ) -> None:
        """Create the projections.

        Args:
            width: D.
            encoder_width: E.
            heads: heads of the decoder.
            head_size: size of each head.
            chunk_length: M.
            positions: one of `POSITIONS`.
            use_positions: False for the ablation "No CA positional encodings" of Table 13.
        """
        super().__init__()
        self.chunk_length = chunk_length
        self.attention = CrossAttention(
            width, encoder_width, heads, head_size, positions=positions, use_positions=use_positions
        )

    def forward(
        self,
        hidden: Tensor,
        *,
        encoded: Tensor | None,
        distances: Distances,
        present: Tensor | None = None,
        documents: Tensor | None = None,
        offset: int = 0,
        step: Step | None = None,
    ) -> Tensor:
        """Let each attending chunk attend to all tokens of all its neighbors jointly.

        Args:
            hidden: [B, Q, D], the tokens of a sequence from position `offset` on, to its end N = offset + Q >= M.
            encoded: [B, L, K, R, E], encoded neighbors of the L = floor(N / M) complete chunks.
            distances: i - i' + M - 1, encoded.
            present: bool [B, L, K, R], False where a neighbor's token is padding; None if there is no padding.
            documents: integers [B, N], the document of each token, to keep neighbors within the retrieving document.
            offset: tokens of the sequence that come before `hidden`.
            step: of a cache, which has the neighbors of earlier calls. `encoded` and `distances` are then as
                `Step.attend` takes them, and nothing else is given.

        Returns:
            [B, Q, D]. The result is zero for the first M - 1 tokens of the sequence and for tokens whose neighbors are
            all missing. With `documents`, it is also zero unless the whole retrieving chunk is in the token's document.
        """
        if step is not None:
            return step.attend(self.attention, hidden, encoded, distances)
        assert encoded is not None
        batch, length, width = hidden.shape
        m, first = self.chunk_length, self.chunk_length - 1
        unchanged = max(0, first - offset)  # tokens of `hidden` before the first that attends
        chunk, start = divmod(max(0, offset - first), m)  # chunk of the first that attends, and its position there
        encoded, present = encoded[:, chunk:], None if present is None else present[:, chunk:].flatten(0, 1)
        chunks, end = encoded.shape[1], start + length - unchanged
        attending = F.pad(hidden[:, unchanged:], (0, 0, start, chunks * m - end))  # the end lacks 0 to M - 1 tokens
        attending = attending.reshape(batch * chunks, 1, m, width)
        attended = self.attention(  # [BL, 1, M, D]
            attending, context=encoded.flatten(0, 1), distances=distances, present=present
        )
        if present is not None:
            # A chunk without a single neighbor token has attended to padding: zero its result.
            attended = attended * present.flatten(1).any(dim=1)[:, None, None, None]
        attended = attended.reshape(batch, chunks * m, width)[:, start:end]
        if documents is not None:
            # Documents are contiguous in a sequence, so a chunk that starts in a later token's document is all in it.
            retrieving = documents[:, chunk * m : (chunk + chunks) * m : m]  # document of its first token, [B, L]
            retrieving = retrieving.repeat_interleave(m, dim=1)[:, start:end]
            attended = attended * (retrieving == documents[:, offset + unchanged :])[..., None]
        return F.pad(attended, (0, 0, unchanged, 0))
