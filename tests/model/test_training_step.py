"""The model trains in the precisions people use, in blocks of any size, and what it learns is what it was shown."""

import pytest
import torch
from model_builders import VOCABULARY, random_tokens, small_choices, small_model, small_size
from torch import Tensor

from retro_lab.model.kernels import relative_attention
from retro_lab.model.retro import RetroModel


def loss_and_gradients(model: RetroModel) -> tuple[Tensor, dict[str, Tensor]]:
    """One step on fixed random data, a missing neighbor among it."""
    tokens, targets = random_tokens(2, 14), random_tokens(2, 14, seed=2)
    neighbors, lengths = random_tokens(2, 3, 2, 8, seed=3), random_tokens(2, 3, 2, seed=4) % 9
    lengths[0, 0] = 0
    model.zero_grad()
    loss = model.loss(tokens, targets, torch.ones_like(tokens).bool(), neighbors, lengths)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
def test_autocast_to_bfloat16_is_close_to_float32(positions: str) -> None:
    model = small_model(model=small_choices(init_std=0.2, positions=positions)).float()
    exact, exact_gradients = loss_and_gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        rough, rough_gradients = loss_and_gradients(model)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.01, atol=0)
    assert rough_gradients.keys() == exact_gradients.keys()
    for name, gradient in exact_gradients.items():
        assert (rough_gradients[name] - gradient).norm() < 0.1 * gradient.norm() + 0.05, name


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
def test_float64_agrees_with_float32(positions: str) -> None:
    model = small_model(model=small_choices(positions=positions))
    exact, _ = loss_and_gradients(model)
    assert exact.dtype == torch.float64
    single, _ = loss_and_gradients(model.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("length", [127, 128, 129, 300])
def test_blocks_of_queries_change_nothing(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At real block sizes, against one block over the whole sequence."""
    model, tokens = small_model(), random_tokens(2, length)
    mask = torch.ones_like(tokens).bool()
    in_blocks = torch.autograd.grad(
        model.loss(tokens, tokens, mask), tuple(model.layers.parameters()), allow_unused=True
    )
    monkeypatch.setattr(relative_attention, "BLOCK", 1000)
    at_once = torch.autograd.grad(model.loss(tokens, tokens, mask), tuple(model.layers.parameters()), allow_unused=True)
    for actual, expected in zip(in_blocks, at_once, strict=True):
        if expected is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_dropout_acts_in_training_only() -> None:
    model = small_model(model=small_choices(dropout=0.3))
    inputs = random_tokens(1, 14), random_tokens(1, 3, 2, 8)
    with torch.no_grad():
        assert not torch.equal(model(*inputs), model(*inputs))
        model.eval()
        assert torch.equal(model(*inputs), model(*inputs))


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
def test_learns_to_copy_from_its_neighbors(positions: str) -> None:
    """Random text has no other source of information: only a model that reads RET(C_u) can predict C_{u+1}.

    The neighbor of each chunk is the chunk that follows it, at fixed places of [N, F], as a leak would put it.
    """
    torch.manual_seed(0)
    size = small_size(width=32, ffw_width=64, heads=4, head_size=8, layers=2, cca_layers=[1, 2], encoder_width=32,
                      encoder_ffw_width=64, encoder_heads=4, encoder_head_size=8)  # fmt: skip
    model = RetroModel(size, small_choices(init_std=0.1, positions=positions), VOCABULARY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(100):
        text = random_tokens(16, 13, seed=step)
        tokens, targets = text[:, :-1], text[:, 1:]
        # RET(C_1) = [C_1, C_2], RET(C_2) = [C_2, C_3], and none for C_3.
        neighbors = torch.stack([text[:, 0:8], text[:, 4:12], torch.zeros_like(text[:, 0:8])], dim=1).unsqueeze(2)
        lengths = torch.tensor([8, 8, 0]).view(1, 3, 1).expand(16, 3, 1)
        mask = torch.zeros(16, 12, dtype=torch.bool)
        mask[:, 3:11] = True  # the targets in C_2 and C_3
        optimizer.zero_grad()
        loss = model.loss(tokens, targets, mask, neighbors, lengths) / mask.sum()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.0  # chance is ln 23 = 3.1
