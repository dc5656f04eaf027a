"""Softmax attention with relative positions, for all four attentions of RETRO, in tiles.

    weights = softmax(((q + u) . k + (q + v) . R s(d)) / sqrt(A) over all keys);  result = weights V

RETRO adds one thing to Dai et al. 2019: a neighbor axis on one of the two sides. The k neighbors of a chunk are either
the queries (encoder cross-attention, P = k) or the keys (chunked cross-attention, S = k). The distances are the same
for each neighbor, so position logits are computed once for all S blocks of keys, and keys once for all P blocks of
queries.

Textbook attention keeps a few matrices of all queries by all keys for the backward pass, and if causal it computes
twice as many logits as it needs. Here a tile of a few heads (and, if causal, of 128 queries and the keys up to their
end) is computed, used and discarded; the backward pass recomputes it:

    keys      0 ....... 127 ....... 255 ....... 383
    block 0   [ ######### ]
    block 1   [ ##################### ]
    block 2   [ ################################# ]

Shapes: H heads, G groups (sequences or chunks), P query blocks of Q tokens each, S key blocks of J tokens each,
T distances, A head size. In a tile, H, Q and J count the tile's own heads, queries and keys.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retro_lab.model.positions import align_distances

BLOCK = 128
"""Queries in a tile of causal attention: enough for efficient matrix products, few compared with the sequence."""


def relative_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: tuple[Tensor, Tensor, Tensor] | None,
    *,
    present: Tensor | None = None,
    causal: bool = False,
    documents: Tensor | None = None,
) -> Tensor:
    """Attend to all tokens of all key blocks jointly.

    Args:
        query: q, [H, G, P, Q, A].
        key: [H, G, S, J, A].
        value: [H, G, S, J, A].
        positions: u, v [H, A] and R s(d) [H, A, T], or [H, G, A, T] if groups differ, for the distances of
            `descending_distances`, which may end at the filler -1 if causal; None for attention without positions.
        present: bool [G, S, J], False where a key is padding; None if there is no padding.
        causal: whether a query sees only its own key and earlier ones (P = S = 1). The queries belong to the last Q of
            the J tokens, Q <= J; positions are then for the distances from J - 1 to 0, and the filler.
        documents: integers [G, J], the document of each token, to keep causal attention within documents.

    Returns:
        [H, G, P, Q, A], in memory [G, P, Q, H, A] so that heads merge without a copy. A query without any key gets an
        arbitrary finite vector, never NaN: the caller discards it.
    """
    padding = None
    if present is not None:
        # Very negative, but neither -inf nor near overflow: a row without keys must not give NaN, here or in the
        # gradient. If there is any real key, the weight of padding is exactly 0.
        absent = torch.finfo(key.dtype).min / 2
        padding = key.new_zeros(present.shape).masked_fill_(~present, absent)[:, None, None]  # [G, 1, 1, S, J]
    content_bias, position_bias, position = (None, None, None) if positions is None else positions
    inputs = _Inputs(query, content_bias, position_bias, key, value, position, padding, documents, causal)
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _attend(inputs)  # for a single token, the way through autograd takes as long as the attention
    attended: Tensor = _RelativeAttention.apply(*inputs)
    return attended


class _Inputs(NamedTuple):
    """The inputs of the attention. All but the last, `causal`, are tensors and kept for the backward pass."""

    query: Tensor  # [H, G, P, Q, A]
    content_bias: Tensor | None  # u, [H, A]
    position_bias: Tensor | None  # v, [H, A]
    key: Tensor  # [H, G, S, J, A]
    value: Tensor  # [H, G, S, J, A]
    position: Tensor | None  # R s(d), [H, A, T] or [H, G, A, T]
    padding: Tensor | None  # [G, 1, 1, S, J], 0 or very negative: added to the logits
    documents: Tensor | None  # [G, J]
    causal: bool


class _Tile(NamedTuple):
    """One tile, as indices into whole tensors."""

    rows: tuple[slice, ...]  # of [H, G, P, Q, A]: some heads and queries
    columns: tuple[slice, ...]  # of [H, G, S, J, A]: the same heads, and the keys their queries may see
    distances: tuple[Any, ...]  # of [H, ..., T]: the same heads, from the largest distance of a query to a key


class _RelativeAttention(torch.autograd.Function):
    """Forward and backward over the tiles."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        given = _Inputs(*inputs)
        ctx.save_for_backward(*inputs[:-1])
        ctx.causal = given.causal
        return _attend_in_graph(*inputs) if torch.compiler.is_compiling() else _attend(given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs = (*ctx.saved_tensors, ctx.causal)
        given = _Inputs(*inputs)
        in_graph = torch.compiler.is_compiling()
        gradients: list[Tensor | None] = list(
            _gradients_in_graph(*inputs, grad_output) if in_graph else _gradients(given, grad_output)
        )
        if given.position is None:
            gradients[1] = gradients[2] = gradients[5] = None
        return *gradients, None, None, None


def _attend(inputs: _Inputs) -> Tensor:
    attended, value = _empty_result(inputs.query), inputs.value
    logit_key = _center_unless_causal(inputs)
    for tile in _tiles(inputs):
        weights = _weights(tile, inputs, logit_key, *_add_biases(tile, inputs)).to(value.dtype)
        result = attended[tile.rows]
        result.copy_((weights @ _as_matrices(value[tile.columns])).view(result.shape))
    return attended


def _gradients(inputs: _Inputs, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the first six inputs, empty for those that are None."""
    query, content_bias, position_bias, key, value, position = inputs[:6]
    dtype, exact = value.dtype, _at_least_float32(value)
    logit_key, key, value = _center_unless_causal(inputs), _center(key), _center(value)
    query_gradient = torch.empty_like(query)
    # Several tiles add to these, so they are summed in at least float32.
    content_bias_gradient, position_bias_gradient, key_gradient, value_gradient, position_gradient = (
        query.new_empty(0) if tensor is None else torch.zeros_like(tensor, dtype=exact)
        for tensor in (content_bias, position_bias, key, value, position)
    )
    scale = 1 / math.sqrt(value.shape[-1])
    for tile in _tiles(inputs):
        by_query, by_key = query[tile.rows].shape, key[tile.columns].shape
        content_query, position_query = _add_biases(tile, inputs)
        weights = _weights(tile, inputs, logit_key, content_query, position_query)
        scaled = grad_output[tile.rows] * scale
        grad_rows = _as_matrices(grad_output[tile.rows])
        value_gradient[tile.columns] += (weights.to(dtype).transpose(1, 2) @ grad_rows).view(by_key)
        gradient = (_as_matrices(scaled) @ _as_matrices(value[tile.columns]).transpose(1, 2)).to(exact)
        # With g = d loss / d w, d loss / d logits = w (g - sum_j w_j g_j). The sum is also the result times
        # grad_output, which is cheaper; but rows of the gradient sum to zero only with a sum of these same rounded g.
        expected = torch.linalg.vecdot(weights, gradient).unsqueeze(-1)
        gradient = gradient.sub_(expected).mul_(weights).to(dtype)  # of logits, [HG, PQ, SJ]
        content_query_gradient = (gradient @ _as_matrices(key[tile.columns])).view(by_query)
        query_gradient[tile.rows] = content_query_gradient
        key_gradient[tile.columns] += (gradient.transpose(1, 2) @ _as_matrices(content_query)).view(by_key)
        if position_query is None or position is None:
            continue
        gradient = gradient.view(*by_query[:4], *by_key[2:4])  # [H, G, P, Q, S, J]
        gradient = gradient.sum(dim=-2) if by_key[2] > 1 else gradient.squeeze(-2)
        distances = position[tile.distances]
        by_distance = gradient.new_zeros(*by_query[:4], distances.shape[-1])  # [H, G, P, Q, T]
        align_distances(by_distance, by_key[3]).copy_(gradient)
        by_distance, position_rows = _by_positions(by_distance, distances), _by_positions(position_query, distances)
        position_query_gradient = (by_distance @ distances.flatten(0, -3).transpose(1, 2)).view(by_query)
        query_gradient[tile.rows] += position_query_gradient
        position_gradient[tile.distances] += (position_rows.transpose(1, 2) @ by_distance).view(distances.shape)
        heads = tile.rows[0]
        content_bias_gradient[heads] += content_query_gradient.sum(dim=(1, 2, 3), dtype=exact)
        position_bias_gradient[heads] += position_query_gradient.sum(dim=(1, 2, 3), dtype=exact)
    summed = (content_bias_gradient, position_bias_gradient, key_gradient, value_gradient, position_gradient)
    of_content_bias, of_position_bias, of_key, of_value, of_position = (tensor.to(dtype) for tensor in summed)
    return query_gradient, of_content_bias, of_position_bias, of_key, of_value, of_position


def _empty_result(query: Tensor) -> Tensor:
    """Empty [H, G, P, Q, A], laid out in memory as [G, P, Q, H, A]."""
    heads, groups, query_blocks, queries, head_size = query.shape
    return query.new_empty(groups, query_blocks, queries, heads, head_size).movedim(-2, 0)


# A compiled graph calls these two as single operations: unrolling the loops over tiles would make it many times as
# large, and the operations worth fusing are between the attentions.
_SCHEMA = (
    "Tensor query, Tensor? content_bias, Tensor? position_bias, Tensor key, Tensor value, Tensor? position, "
    "Tensor? padding, Tensor? documents, bool causal"
)


@torch.library.custom_op("retro_lab::attend", mutates_args=(), schema=f"({_SCHEMA}) -> Tensor")
def _attend_in_graph(*inputs: Any) -> Tensor:
    return _attend(_Inputs(*inputs))


@torch.library.custom_op(
    "retro_lab::attend_gradients",
    mutates_args=(),
    schema=f"({_SCHEMA}, Tensor grad_output) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _gradients_in_graph(*inputs_and_gradient: Any) -> tuple[Tensor, ...]:
    *inputs, grad_output = inputs_and_gradient
    return _gradients(_Inputs(*inputs), grad_output)


@_attend_in_graph.register_fake
def _fake_attend(*inputs: Any) -> Tensor:
    return _empty_result(_Inputs(*inputs).query)


@_gradients_in_graph.register_fake
def _fake_gradients(*inputs_and_gradient: Any) -> tuple[Tensor, ...]:
    missing = inputs_and_gradient[0].new_empty(0)
    return tuple(missing.clone() if tensor is None else torch.empty_like(tensor) for tensor in inputs_and_gradient[:6])


def _center_unless_causal(inputs: _Inputs) -> Tensor:
    """Return the keys to compute logits with: centered, unless the mean would leak keys that a query must not see.

    The mean changes only rounding, but that is enough for later tokens to change earlier logits.
    """
    return inputs.key if inputs.causal else _center(inputs.key)


def _center(tensor: Tensor) -> Tensor:
    """Subtract from half-precision keys or values [H, G, S, J, A] the mean over those that are attended to together.

    This changes neither the weights nor the gradients of logits, which depend only on differences between keys and
    between values. If all keys are nearly the same, as from an encoder that has learned little, half precision would
    lose these differences in the products, and the gradients of queries would be noise.
    """
    if tensor.dtype.itemsize > 2:
        return tensor
    exact = tensor.float()
    return (exact - exact.mean(dim=(2, 3), keepdim=True)).to(tensor.dtype)


def _tiles(inputs: _Inputs) -> Iterator[_Tile]:
    """Cut the logits of all queries and keys into tiles."""
    heads, groups, query_blocks, queries, _ = inputs.query.shape
    key_blocks, keys = inputs.key.shape[2:4]
    causal, limit = inputs.causal, tile_limit(inputs.query.device)
    every = slice(None)
    for start in range(0, queries, BLOCK if causal else queries):
        end = min(start + BLOCK, queries) if causal else queries
        visible = keys - queries + end if causal else keys
        step = max(1, limit // (groups * query_blocks * (end - start) * key_blocks * visible))
        for head in range(0, heads, step):
            some = slice(head, head + step)
            yield _Tile(
                rows=(some, every, every, slice(start, end)),
                columns=(some, every, every, slice(visible)),
                distances=(some, ..., slice(queries - end, None)),
            )


def tile_limit(device: torch.device) -> int:
    """Logits in a tile of several heads: as many as a CPU's cache holds, or enough to keep an accelerator busy."""
    return 2**20 if device.type == "cpu" else 2**27


def _add_biases(tile: _Tile, inputs: _Inputs) -> tuple[Tensor, Tensor | None]:
    """Return one tile's q + u, to multiply with keys, and q + v, to multiply with distances, [H, G, P, Q, A]."""
    query = inputs.query[tile.rows]
    if inputs.content_bias is None or inputs.position_bias is None:
        return query, None
    heads = tile.rows[0], None, None, None
    return query + inputs.content_bias[heads], query + inputs.position_bias[heads]


def _weights(tile: _Tile, inputs: _Inputs, key: Tensor, content_query: Tensor, position_query: Tensor | None) -> Tensor:
    """Attention weights of one tile, [HG, PQ, SJ], in at least float32, with `key` in place of `inputs.key`."""
    position, padding, documents = inputs.position, inputs.padding, inputs.documents
    key = key[tile.columns]
    (heads, groups, query_blocks, queries, head_size), (key_blocks, keys) = content_query.shape, key.shape[2:4]
    shape = (heads, groups, query_blocks, queries, key_blocks, keys)
    mask = padding
    if inputs.causal:  # the last query is aligned with the last key; every query sees itself, so no row lacks keys
        if queries > 1:
            mask = key.new_full((queries, keys), -math.inf).triu_(keys - queries + 1).unsqueeze(1)  # [Q, 1, J]
        if documents is not None:
            other = documents[:, keys - queries : keys, None] != documents[:, None, :keys]  # [G, Q, J]
            mask = (key.new_zeros(()) if mask is None else mask).masked_fill(other[:, None, :, None], -math.inf)
    logits = key.new_empty(shape)
    if position is None or position_query is None:
        logits.copy_(key.new_zeros(()) if mask is None else mask)
    else:
        distances = position[tile.distances]
        by_distance = _by_positions(position_query, distances) @ distances.flatten(0, -3)  # [H, GPQ, T] or [HG, PQ, T]
        by_key = align_distances(by_distance.view(*shape[:4], -1), keys)
        by_key = by_key.unsqueeze(-2).expand(shape)
        logits.copy_(by_key) if mask is None else torch.add(by_key, mask, out=logits)
    scale = 1 / math.sqrt(head_size)
    logits = logits.view(heads * groups, query_blocks * queries, key_blocks * keys).baddbmm_(
        _as_matrices(content_query), _as_matrices(key).transpose(1, 2), beta=scale, alpha=scale
    )
    return torch.softmax(logits, dim=-1, dtype=_at_least_float32(logits))


def _as_matrices(tensor: Tensor) -> Tensor:
    """[H, G, P, Q, A] as a batch of matrices, [HG, PQ, A]."""
    return tensor.flatten(2, 3).flatten(0, 1)


def _by_positions(tensor: Tensor, position: Tensor) -> Tensor:
    """[H, G, P, Q, A] as a batch of matrices, one for each of the [H] or [H, G] matrices of positions."""
    return tensor.reshape(position.shape[:-2].numel(), -1, tensor.shape[4])


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
