"""Rotary positions: what they are and which kernels they reach. That the model equals a slow one, is causal and so on
is tested for both kinds of positions in the other files."""

from typing import Any

import pytest
import torch
from model_builders import VOCABULARY, random_tokens, small_choices, small_model, small_size
from torch import Tensor

from retro_lab.model import rotary
from retro_lab.model.config import ModelConfig
from retro_lab.model.distances import DistanceEncoder
from retro_lab.model.retro import RetroModel
from retro_lab.model.rotary import Rotations, rotary_attention, rotate, rotations

HEADS, GROUPS, HEAD_SIZE = 2, 3, 6


def random_vectors(*shape: int) -> Tensor:
    """Float64 vectors of one head size for all heads and groups."""
    return torch.randn(HEADS, GROUPS, *shape, HEAD_SIZE, dtype=torch.float64)


def rotation_at(first: int, tokens: int) -> Tensor:
    """Rotation of `tokens` tokens from position `first` on."""
    return rotations(torch.arange(first, first + tokens), HEAD_SIZE, 10_000.0, torch.float64)


@pytest.mark.parametrize("shift", [-1000, -3, 1, 2048])
def test_only_distances_matter(shift: int) -> None:
    torch.manual_seed(0)
    query, key, value = random_vectors(1, 4), random_vectors(2, 5), random_vectors(2, 5)
    here = rotary_attention(query, key, value, Rotations(rotation_at(3, 4), rotation_at(0, 5)))
    there = rotary_attention(query, key, value, Rotations(rotation_at(3 + shift, 4), rotation_at(shift, 5)))
    torch.testing.assert_close(there, here, rtol=1e-10, atol=1e-10)
    elsewhere = rotary_attention(query, key, value, Rotations(rotation_at(3 + shift, 4), rotation_at(0, 5)))
    assert (elsewhere - here).abs().max() > 1e-3


def test_rotations_keep_lengths_and_add_up() -> None:
    torch.manual_seed(0)
    vectors = random_vectors(1, 5)
    turned = rotate(vectors, rotation_at(7, 5))
    torch.testing.assert_close(turned.norm(dim=-1), vectors.norm(dim=-1))
    again = rotate(turned, rotation_at(2, 1).expand(2, 5, HEAD_SIZE // 2))
    torch.testing.assert_close(again, rotate(vectors, rotation_at(9, 5)))


def test_the_attending_token_stands_m_minus_1_behind_the_neighbor() -> None:
    """d(i, i') = i - i' + m - 1: the query's position less the key's."""
    m, r = 64, 128
    encoded = DistanceEncoder(ModelConfig(positions="rotary"), 8, HEAD_SIZE).between(m, r, m - 1, torch.empty(0))
    query = rotations(torch.arange(m - 1, 2 * m - 1), HEAD_SIZE, 10_000.0, torch.float32)
    key = rotations(torch.arange(r), HEAD_SIZE, 10_000.0, torch.float32)
    assert torch.equal(encoded.query, query)
    assert torch.equal(encoded.key, key)


def test_a_group_without_keys_gives_finite_results_and_gradients() -> None:
    torch.manual_seed(0)
    inputs = [tensor.requires_grad_() for tensor in (random_vectors(1, 2), random_vectors(2, 3), random_vectors(2, 3))]
    present = torch.zeros(GROUPS, 2, 3, dtype=torch.bool)
    present[1, 0, 0] = True
    attended = rotary_attention(*inputs, Rotations(rotation_at(0, 2), rotation_at(0, 3)), present=present)
    gradients = torch.autograd.grad(attended.sum(), inputs)
    assert all(tensor.isfinite().all() for tensor in (attended, *gradients))
    torch.testing.assert_close(attended[:, 1, 0], inputs[2][:, 1, 0, :1].expand(HEADS, 2, HEAD_SIZE))


def test_there_are_no_parameters_for_positions() -> None:
    """R, u and v are all that a model with rotary positions lacks."""
    learned = RetroModel(small_size(), small_choices(), VOCABULARY).state_dict()
    rotated = RetroModel(small_size(), small_choices(positions="rotary"), VOCABULARY).state_dict()
    positions = {name for name in learned if ".positions." in name}
    assert len(positions) == 3 * (3 + 2 + 2 + 1)  # ATTN, CCA, ATTN_enc, CA_enc
    assert learned.keys() - positions == rotated.keys()


def test_fused_kernels_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal mask given as a matrix would rule the fastest kernel out, and so would padding that is not there."""
    asked: list[tuple[Any, Any]] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def record(*inputs: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        asked.append((attn_mask, is_causal))
        return original(*inputs, attn_mask=attn_mask, is_causal=is_causal)

    monkeypatch.setattr(rotary.F, "scaled_dot_product_attention", record)
    small_model(model=small_choices(positions="rotary"))(random_tokens(1, 8), random_tokens(1, 2, 2, 8))
    decoder, encoder = (None, True), (None, False)
    assert asked == [decoder, decoder, *[encoder] * 3, encoder, decoder, encoder]  # P = [2, 3]: CCA is not causal
