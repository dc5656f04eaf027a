"""The attention that all parts share: positions, neighbors on either side, tiles, memory."""

import math
from typing import Any

import pytest
import torch
from model_builders import LargestTensor, random_tokens, small_model
from torch import Tensor

from retro_lab.model.kernels import relative_attention as module
from retro_lab.model.kernels.relative_attention import relative_attention
from retro_lab.model.positions import descending_distances

HEADS, GROUPS, HEAD_SIZE = 3, 2, 4


def random_inputs(query_blocks: int, queries: int, key_blocks: int, keys: int, distances: int) -> list[Tensor]:
    """Queries, keys, values, u, v and projected distances, float64, in need of gradients."""
    torch.manual_seed(0)
    query_shape = (HEADS, GROUPS, query_blocks, queries, HEAD_SIZE)
    key_shape = (HEADS, GROUPS, key_blocks, keys, HEAD_SIZE)
    bias_shape = (HEADS, HEAD_SIZE)
    shapes = (query_shape, key_shape, key_shape, bias_shape, bias_shape, (*bias_shape, distances))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def attend(query: Tensor, key: Tensor, value: Tensor, *positions: Tensor, **choices: Any) -> Tensor:
    """`relative_attention` of `random_inputs`."""
    return relative_attention(query, key, value, positions, **choices)


@pytest.mark.parametrize(("m", "r", "k"), [(4, 8, 2), (1, 1, 3), (4, 4, 1), (3, 6, 2)])
def test_position_logits_depend_on_the_distance_alone(m: int, r: int, k: int) -> None:
    """Peers' bugs 1, 2 and 19: the same d = i - i' + m - 1 weighs the same, whatever i, i' and the neighbor j.

    With empty keys and one and the same query everywhere, a logit is a function of the distance.
    """
    _, key, _, *positions = random_inputs(1, m, k, r, m + r)
    _, position_bias, position = positions
    query = torch.randn(HEADS, 1, 1, 1, HEAD_SIZE, dtype=torch.float64).expand(HEADS, GROUPS, 1, m, HEAD_SIZE)
    value = torch.eye(k * r, dtype=torch.float64).view(k, r, k * r)
    by_distance = dict(
        zip(
            descending_distances(m, r, m - 1, torch.device("cpu")).tolist(),
            ((query[:, 0, 0, 0] + position_bias)[:, None] @ position).squeeze(1).T / math.sqrt(HEAD_SIZE),
            strict=True,
        )
    )
    logits = torch.stack(
        [torch.stack([by_distance[i - i_ + m - 1] for i_ in range(1, r + 1)]) for i in range(1, m + 1)]
    )
    expected = torch.softmax(logits.repeat(1, k, 1), dim=1).permute(2, 0, 1)  # [H, M, KR]
    # Values of one entry each read the weights out, head size by head size.
    columns = [
        attend(query, 0 * key, column.expand(HEADS, GROUPS, k, r, HEAD_SIZE), *positions)[..., 0]
        for column in value.unsqueeze(-2).unbind(-1)
    ]
    actual = torch.stack(columns, dim=-1)[:, :, 0]  # [H, G, M, KR]
    torch.testing.assert_close(actual, expected[:, None].expand_as(actual))


@pytest.mark.parametrize("tile_limit", [1, 2**20])
@pytest.mark.parametrize(
    "kind", ["causal", "neighbors are queries", "neighbors are keys", "positions of groups", "no positions"]
)
def test_gradients_are_those_of_finite_differences(kind: str, tile_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 2)
    monkeypatch.setattr(module, "tile_limit", lambda device: tile_limit)
    if kind == "causal":
        inputs, causal = random_inputs(1, 5, 1, 5, 6), True
    else:
        inputs, causal = random_inputs(*((2, 3, 1, 2) if kind == "neighbors are queries" else (1, 2, 2, 3)), 5), False
    if kind == "positions of groups":
        inputs[5] = torch.randn(HEADS, GROUPS, HEAD_SIZE, 5, dtype=torch.float64, requires_grad=True)
    if kind == "no positions":
        assert torch.autograd.gradcheck(lambda *tensors: relative_attention(*tensors, None), inputs[:3])
    else:
        assert torch.autograd.gradcheck(lambda *tensors: attend(*tensors, causal=causal), inputs)


def test_a_group_without_keys_gives_finite_results_and_gradients() -> None:
    inputs = random_inputs(1, 2, 2, 3, 5)
    present = torch.zeros(GROUPS, 2, 3, dtype=torch.bool)
    present[1, 0, 0] = True
    attended = attend(*inputs, present=present)
    gradients = torch.autograd.grad(attended.sum(), inputs)
    assert all(tensor.isfinite().all() for tensor in (attended, *gradients))
    # The one key of the second group has weight 1: the result is its value, exactly.
    assert torch.equal(attended[:, 1, 0], inputs[2][:, 1, 0, :1].expand(HEADS, 2, HEAD_SIZE))


def test_causal_attention_forms_no_matrix_of_all_queries_by_all_keys() -> None:
    """Memory grows with H x 128 x N, in the backward pass too."""
    length = 1024
    inputs = random_inputs(1, length, 1, length, length + 1)
    with LargestTensor() as largest:
        attend(*inputs, causal=True).sum().backward()
    assert largest.entries <= HEADS * GROUPS * module.BLOCK * (length + 1)


def test_the_chunk_is_projected_once_for_all_its_neighbors() -> None:
    """Keys and values of H_u in the encoder: once per chunk, not once per neighbor (lucidrains repeats them)."""
    model, seen = small_model(), []
    projection = model.encoder.layers[0].cross_attention.block.key_value
    projection.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].shape))
    model(random_tokens(2, 12), random_tokens(2, 3, 5, 8))
    assert seen == [(2 * 3, 1, 4, 8)]


def test_half_precision_keeps_the_differences_between_keys_and_values_that_are_much_alike() -> None:
    """Those of an encoder at the start of training: queries must get gradients, not noise that AdamW makes steps of."""
    torch.manual_seed(0)
    query, grad_output = (torch.randn(HEADS, GROUPS, 1, 8, 32).bfloat16() for _ in range(2))
    # 1 to 1 + 7/128 in steps that bfloat16 can just tell apart.
    key, value = (1 + torch.randint(8, (HEADS, GROUPS, 2, 64, 32)) / 128 for _ in range(2))

    def query_gradient(dtype: torch.dtype) -> Tensor:
        attending = query.to(dtype).requires_grad_()
        attended = relative_attention(attending, key.to(dtype), value.to(dtype), None)
        (gradient,) = torch.autograd.grad(attended, attending, grad_output.to(dtype))
        return gradient.double()

    exact, rough = query_gradient(torch.float64), query_gradient(torch.bfloat16)
    assert (rough - exact).norm() < 0.02 * exact.norm()
