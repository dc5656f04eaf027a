"""Attention between a few blocks of tokens: the encoder's two attentions and the heart of chunked cross-attention.

Every sequence here is short (a chunk, a neighbor), so logits are formed whole. What is special to RETRO is the
neighbor axis: k neighbors either ask one chunk (encoder cross-attention) or answer one chunk (chunked
cross-attention). The side without neighbors is projected once, and position logits are formed once, for all of them.

Shapes: G groups (one per chunk), P query blocks and Q tokens in each, S key blocks and J tokens in each, T distances,
D width of the queries' stream, C width of the keys' stream, H heads, A head size.
"""

import math

import torch
from torch import Tensor, nn

from retro_lab.model.positions import RelativePositions, align_distances


def split_heads(projected: Tensor, heads: int) -> Tensor:
    """Split the last axis, [G, ..., HA], into heads and put them first: [H, G, ..., A]."""
    return projected.unflatten(-1, (heads, -1)).movedim(-2, 0)


def merge_heads(attended: Tensor) -> Tensor:
    """Undo `split_heads`: [H, G, ..., A] becomes [G, ..., HA]."""
    return attended.movedim(0, -2).flatten(-2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: RelativePositions | None,
    encodings: Tensor | None,
    present: Tensor | None,
) -> Tensor:
    """Softmax attention over all keys of all key blocks jointly, with relative positions inside each block.

    Args:
        query: [H, G, P, Q, A].
        key: [H, G, S, J, A].
        value: [H, G, S, J, A].
        positions: R, u and v, or None for attention that knows no positions.
        encodings: sinusoids [T, D] of `descending_distances(Q, J, ...)`, needed with `positions`.
        present: bool [G, S, J], False where a key is padding; None where there is no padding.

    Returns:
        [H, G, P, Q, A]. A query without any key gets an arbitrary finite vector, never NaN: the caller discards it.
    """
    (heads, groups, askers, queries, head_size), (answerers, keys) = query.shape, key.shape[2:4]
    query = query * (1 / math.sqrt(head_size))
    key, value = key.flatten(2, 3), value.flatten(2, 3)
    if positions is None or encodings is None:
        logits = query.flatten(2, 3) @ key.transpose(-1, -2)
    else:
        scale = 1 / math.sqrt(head_size)
        content_bias = (scale * positions.content_bias).to(query.dtype).view(heads, 1, 1, 1, head_size)
        position_bias = (scale * positions.position_bias).to(query.dtype).view(heads, 1, 1, 1, head_size)
        by_distance = (query + position_bias).flatten(1, 3) @ positions.project(encodings)  # [H, GPQ, T]
        by_distance = by_distance.view(heads, groups, askers, queries, -1)
        by_key = align_distances(by_distance, keys).unsqueeze(-2)  # [H, G, P, Q, 1, J]: the same for every key block
        logits = (query + content_bias).flatten(2, 3) @ key.transpose(-1, -2)  # [H, G, PQ, SJ]
        logits = (logits.view(heads, groups, askers, queries, answerers, keys) + by_key).view(logits.shape)
    if present is not None:
        # The most negative finite number, not -inf: a row without keys must give no NaN, in the gradient neither.
        logits = logits.masked_fill(~present.view(groups, 1, -1), torch.finfo(logits.dtype).min)
    weights = torch.softmax(logits, dim=-1).to(value.dtype)
    return (weights @ value).view(query.shape)


class SelfAttention(nn.Module):
    """Bidirectional self-attention of the encoder, over the tokens of one neighbor."""

    def __init__(self, width: int, heads: int, head_size: int) -> None:
        """Create the projections.

        Args:
            width: D.
            heads: H.
            head_size: A.
        """
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * heads * head_size, bias=False)
        self.output = nn.Linear(heads * head_size, width, bias=False)
        self.positions = RelativePositions(width, heads, head_size)

    def forward(self, hidden: Tensor, encodings: Tensor, present: Tensor | None) -> Tensor:
        """Attend within each neighbor.

        Args:
            hidden: [G, S, J, D], S neighbors of J tokens for each chunk.
            encodings: sinusoids [2J, D] of the distances i - j.
            present: bool [G, S, J], False where a token is padding; None without padding.

        Returns:
            [G, S, J, D].
        """
        chunks_and_neighbors = hidden.shape[:2]
        # Every neighbor is a group of its own.
        projected = self.query_key_value(hidden).flatten(0, 1).unsqueeze(1)  # [GS, 1, J, 3HA]
        query, key, value = (split_heads(part, self.heads) for part in projected.chunk(3, dim=-1))
        present = None if present is None else present.flatten(0, 1).unsqueeze(1)
        attended = attend(query, key, value, self.positions, encodings, present)  # [H, GS, 1, J, A]
        return self.output(merge_heads(attended)).squeeze(1).unflatten(0, chunks_and_neighbors)


class CrossAttention(nn.Module):
    """Attention from the tokens of one stream to those of another, neighbors on one of the two sides."""

    def __init__(self, width: int, context_width: int, heads: int, head_size: int, *, use_positions: bool = True) -> None:
        """Create the projections.

        Args:
            width: D, of the stream that asks.
            context_width: C, of the stream that answers.
            heads: H.
            head_size: A.
            use_positions: whether the logits know relative positions.
        """
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, heads * head_size, bias=False)
        self.key_value = nn.Linear(context_width, 2 * heads * head_size, bias=False)
        self.output = nn.Linear(heads * head_size, width, bias=False)
        self.positions = RelativePositions(width, heads, head_size) if use_positions else None

    def forward(self, hidden: Tensor, context: Tensor, encodings: Tensor, present: Tensor | None = None) -> Tensor:
        """Attend from each group of `hidden` to the same group of `context`.

        Args:
            hidden: [G, P, Q, D].
            context: [G, S, J, C].
            encodings: sinusoids [Q + J, D] of the distance between a token of `hidden` and one of `context`.
            present: bool [G, S, J], False where a token of `context` is padding; None without padding.

        Returns:
            [G, P, Q, D].
        """
        query = split_heads(self.query(hidden), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.key_value(context).chunk(2, dim=-1))
        return self.output(merge_heads(attend(query, key, value, self.positions, encodings, present)))
