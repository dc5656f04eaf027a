"""The projections around `relative_attention`: self-attention of decoder and encoder, and cross-attention.

Shapes: G groups (sequences, neighbors or chunks), N tokens of a sequence, P query blocks and Q tokens in each, S key
blocks and J tokens in each, T distances, D width of the stream that asks, C width of the stream that answers, H heads,
A head size.
"""

from torch import Tensor, nn

from retro_lab.model.positions import RelativePositions
from retro_lab.model.relative_attention import relative_attention


def split_heads(projected: Tensor, heads: int, parts: int = 1) -> tuple[Tensor, ...]:
    """Split the last axis of [G, ..., parts x HA] and put heads first: `parts` tensors [H, G, ..., A].

    One copy makes all of them contiguous; matrix products would otherwise copy each of them at each use.
    """
    split = projected.unflatten(-1, (parts, heads, -1)).movedim((-3, -2), (0, 1))
    return split.contiguous().unbind()


def merge_heads(attended: Tensor) -> Tensor:
    """Undo `split_heads`: [H, G, ..., A] becomes [G, ..., HA]."""
    return attended.movedim(0, -2).flatten(-2)


class SelfAttention(nn.Module):
    """Self-attention: ATTN of the decoder where causal, ATTN_enc of the encoder where not."""

    def __init__(self, width: int, heads: int, head_size: int, *, causal: bool) -> None:
        """Create the projections.

        Args:
            width: D.
            heads: H.
            head_size: A.
            causal: whether a token sees the past and itself alone.
        """
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query_key_value = nn.Linear(width, 3 * heads * head_size, bias=False)
        self.output = nn.Linear(heads * head_size, width, bias=False)
        self.positions = RelativePositions(width, heads, head_size)

    def forward(self, hidden: Tensor, encodings: Tensor, present: Tensor | None = None) -> Tensor:
        """Attend within each sequence.

        Args:
            hidden: [G, N, D].
            encodings: sinusoids [T, D] of the distances i - j, with a filler.
            present: bool [G, N], False where a token is padding; None without padding.

        Returns:
            [G, N, D].
        """
        projected = self.query_key_value(hidden).unsqueeze(1)  # one block of queries and one of keys, [G, 1, N, 3HA]
        query, key, value = split_heads(projected, self.heads, parts=3)
        content_query, position_query = self.positions.add_biases(query)
        position = self.positions.project(encodings)
        present = None if present is None else present.unsqueeze(1)
        attended = relative_attention(
            content_query, position_query, key, value, position, present=present, causal=self.causal
        )
        return self.output(merge_heads(attended).squeeze(1))


class CrossAttention(nn.Module):
    """Attention from the tokens of one stream to those of another, neighbors on one of the two sides."""

    def __init__(
        self, width: int, context_width: int, heads: int, head_size: int, *, use_positions: bool = True
    ) -> None:
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
        (query,) = split_heads(self.query(hidden), self.heads)
        key, value = split_heads(self.key_value(context), self.heads, parts=2)
        if self.positions is None:
            attended = relative_attention(query, None, key, value, None, present=present)
        else:
            content_query, position_query = self.positions.add_biases(query)
            position = self.positions.project(encodings)
            attended = relative_attention(content_query, position_query, key, value, position, present=present)
        return self.output(merge_heads(attended))
