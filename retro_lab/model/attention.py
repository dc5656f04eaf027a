"""The projections around `relative_attention`: self-attention of decoder and encoder, and cross-attention.

With the option of rotary positions, `rotary_attention` takes its place, and the parameters R, u and v do not exist.

Shapes: G groups (sequences, neighbors or chunks), N tokens of a sequence, P query blocks of Q tokens each, S key blocks
of J tokens each, T distances, D width of the queries' stream, C width of the keys' and values' stream, H heads, A head
size.
"""

from typing import NamedTuple

from torch import Tensor, nn

from retro_lab.model.decoder_cache import LayerCache
from retro_lab.model.distances import TRANSFORMER_XL, Distances
from retro_lab.model.kernels.relative_attention import relative_attention
from retro_lab.model.positions import RelativePositions
from retro_lab.model.rotary import Rotations, rotary_attention


def split_heads(projected: Tensor, heads: int, parts: int = 1) -> tuple[Tensor, ...]:
    """Split the last axis of [G, ..., parts x HA] into `parts` tensors [H, G, ..., A], heads first.

    One copy makes all of them contiguous; otherwise matrix products would copy each of them at each use.
    """
    split = projected.unflatten(-1, (parts, heads, -1)).movedim((-3, -2), (0, 1))
    return split.contiguous().unbind()


def merge_heads(attended: Tensor) -> Tensor:
    """Undo `split_heads`: [H, G, ..., A] becomes [G, ..., HA]."""
    return attended.movedim(0, -2).flatten(-2)


def attend(
    positions: RelativePositions | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    distances: Distances | None,
    *,
    present: Tensor | None = None,
    causal: bool = False,
    documents: Tensor | None = None,
) -> Tensor:
    """Attend with the kind of positions that `distances` encodes, or without positions.

    Args:
        positions: the parameters that sinusoids need; None for rotations, or without positions.
        query: [H, G, P, Q, A].
        key: [H, G, S, J, A].
        value: [H, G, S, J, A].
        distances: between the queries and the keys, encoded; None for attention without positions.
        present: bool [G, S, J], False where a key is padding; None if there is no padding.
        causal: whether a query sees only its own key and earlier ones; the queries belong to the last Q of the J tokens
            (P = S = 1, Q <= J).
        documents: integers [G, J], the document of each token, to keep causal attention within documents.

    Returns:
        [H, G, P, Q, A].

    Raises:
        ValueError: a causal query has no key.
    """
    if causal and key.shape[3] < query.shape[3]:
        raise ValueError(f"{query.shape[3]} causal queries need at least as many keys, not {key.shape[3]}.")
    if isinstance(distances, Rotations):
        return rotary_attention(query, key, value, distances, present=present, causal=causal, documents=documents)
    relative = None if positions is None or distances is None else positions(distances, query.dtype)
    return relative_attention(query, key, value, relative, present=present, causal=causal, documents=documents)


class SelfAttention(nn.Module):
    """Self-attention: the decoder's ATTN if causal, else the encoder's ATTN_enc."""

    def __init__(self, width: int, heads: int, head_size: int, *, causal: bool, positions: str) -> None:
        """Create the projections.

        Args:
            width: D.
            heads: H.
            head_size: A.
            causal: whether a token sees only the past and itself.
            positions: one of `POSITIONS`.
        """
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query_key_value = nn.Linear(width, 3 * heads * head_size, bias=False)
        self.output = nn.Linear(heads * head_size, width, bias=False)
        self.positions = RelativePositions(width, heads, head_size) if positions == TRANSFORMER_XL else None

    def forward(
        self,
        hidden: Tensor,
        *,
        distances: Distances,
        present: Tensor | None = None,
        documents: Tensor | None = None,
        past: LayerCache | None = None,
    ) -> Tensor:
        """Attend within each sequence.

        Args:
            hidden: [G, N, D].
            distances: i - j, encoded; with a past as that says.
            present: bool [G, N], False where a token is padding; None if there is no padding.
            documents: integers [G, N], the document of each token, to keep causal attention within documents. With a
                past they are those of its tokens and these.
            past: keys and values of the tokens before these; these are added.

        Returns:
            [G, N, D].
        """
        projected = self.query_key_value(hidden).unsqueeze(1)  # one block of queries and one of keys, [G, 1, N, 3HA]
        query, key, value = split_heads(projected, self.heads, parts=3)
        if past is not None:
            key, value, distances = past.extend(key, value, distances, self.positions)
        present = None if present is None else present.unsqueeze(1)
        attended = attend(
            self.positions, query, key, value, distances, present=present, causal=self.causal, documents=documents
        )
        return self.output(merge_heads(attended).squeeze(1))


class KeysValues(NamedTuple):
    """What a cross-attention attends to."""

    key: Tensor  # [H, G, S, J, A]
    value: Tensor  # [H, G, S, J, A]


class CrossAttention(nn.Module):
    """Attention from the tokens of one stream to those of another; one of the two sides has the neighbors."""

    def __init__(
        self, width: int, context_width: int, heads: int, head_size: int, *, positions: str, use_positions: bool = True
    ) -> None:
        """Create the projections.

        Args:
            width: D, of the queries' stream.
            context_width: C, of the keys' and values' stream.
            heads: H.
            head_size: A.
            positions: one of `POSITIONS`.
            use_positions: whether the logits depend on relative positions.
        """
        super().__init__()
        self.heads, self.use_positions = heads, use_positions
        self.query = nn.Linear(width, heads * head_size, bias=False)
        self.key_value = nn.Linear(context_width, 2 * heads * head_size, bias=False)
        self.output = nn.Linear(heads * head_size, width, bias=False)
        learned = use_positions and positions == TRANSFORMER_XL
        self.positions = RelativePositions(width, heads, head_size) if learned else None

    def keys_values(self, context: Tensor) -> KeysValues:
        """Project `context` [G, S, J, C]."""
        return KeysValues(*split_heads(self.key_value(context), self.heads, parts=2))

    def forward(
        self, hidden: Tensor, *, context: Tensor | KeysValues, distances: Distances, present: Tensor | None = None
    ) -> Tensor:
        """Attend from each group of `hidden` to the same group of `context`.

        Args:
            hidden: [G, P, Q, D].
            context: [G, S, J, C], or its keys and values.
            distances: from a token of `hidden` to one of `context`, encoded.
            present: bool [G, S, J], False where a token of `context` is padding; None if there is no padding.

        Returns:
            [G, P, Q, D].
        """
        (query,) = split_heads(self.query(hidden), self.heads)
        key, value = self.keys_values(context) if isinstance(context, Tensor) else context
        attended = attend(self.positions, query, key, value, distances if self.use_positions else None, present=present)
        return self.output(merge_heads(attended))
