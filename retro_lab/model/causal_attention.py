"""Causal self-attention of the decoder, with relative positions, in blocks of queries.

Written in the textbook way, relative positions cost two N x N matrices per head and compute the half of each that
causality throws away. Here a block of queries meets only the keys up to its own end:

    keys      0 ....... 127 ....... 255 ....... 383
    block 0   [ ######### ]
    block 1   [ ##################### ]
    block 2   [ ################################# ]

Shapes: B batch, N sequence length, Q queries in a block, J keys a block can see, D width, H heads, A head size.
"""

import math

import torch
from torch import Tensor, nn

from retro_lab.model.attention import merge_heads, split_heads
from retro_lab.model.positions import RelativePositions, align_distances

BLOCK = 128
"""Queries in a block: large enough for efficient matrix products, small against N."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor, position: Tensor, biases: Tensor) -> Tensor:
    """Attend to the past and to oneself.

    Args:
        query: [H, B, N, A], already scaled by 1/sqrt(A).
        key: [H, B, N, A].
        value: [H, B, N, A].
        position: [H, A, N + 1], the projected sinusoids of distances N - 1, ..., 0 and a filler.
        biases: [2, H, A], u and v scaled by 1/sqrt(A).

    Returns:
        [H, B, N, A].
    """
    length = query.shape[2]
    content_query, position_query = query + biases[:, :, None, None]
    attended = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        by_distance = position_query[:, :, start:end].flatten(1, 2) @ position[..., length - end :]
        by_distance = by_distance.unflatten(1, (-1, end - start))  # [H, B, Q, J + 1]
        logits = content_query[:, :, start:end] @ key[:, :, :end].transpose(-1, -2) + align_distances(by_distance, end)
        future = torch.ones(end - start, end, dtype=torch.bool, device=query.device).triu(start + 1)
        weights = torch.softmax(logits.masked_fill(future, -math.inf), dim=-1).to(value.dtype)
        attended.append(weights @ value[:, :, :end])
    return torch.cat(attended, dim=2)


class CausalSelfAttention(nn.Module):
    """ATTN of the paper: multi-head causal self-attention with relative positions."""

    def __init__(self, width: int, heads: int, head_size: int) -> None:
        """Create the projections.

        Args:
            width: D.
            heads: H.
            head_size: A.
        """
        super().__init__()
        self.heads = heads
        self.scale = 1 / math.sqrt(head_size)
        self.query_key_value = nn.Linear(width, 3 * heads * head_size, bias=False)
        self.output = nn.Linear(heads * head_size, width, bias=False)
        self.positions = RelativePositions(width, heads, head_size)

    def forward(self, hidden: Tensor, encodings: Tensor) -> Tensor:
        """Attend within each sequence.

        Args:
            hidden: [B, N, D].
            encodings: sinusoids [N + 1, D] of the distances N - 1, ..., 0 and a filler.

        Returns:
            [B, N, D].
        """
        query, key, value = (split_heads(part, self.heads) for part in self.query_key_value(hidden).chunk(3, dim=-1))
        biases = torch.stack([self.positions.content_bias, self.positions.position_bias]).to(query.dtype) * self.scale
        position = self.positions.project(encodings)
        return self.output(merge_heads(causal_attention(query * self.scale, key, value, position, biases)))
