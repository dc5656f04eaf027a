"""The chunked cross-entropy is cross-entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from model_builders import VOCABULARY, LargestTensor, random_tokens, small_model
from torch import Tensor

from retro_lab.model.kernels import cross_entropy
from retro_lab.model.kernels.cross_entropy import summed_cross_entropy, token_cross_entropy

TOKENS, WIDTH = 37, 6


@pytest.fixture(params=[1, 5, 64], ids=lambda tokens: f"slices-of-{tokens}")
def sliced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the tokens into slices of a given size, one larger than all tokens among them."""
    monkeypatch.setattr(cross_entropy, "slice_limit", lambda device: request.param * VOCABULARY)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, read-out, targets and a mask."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True)
    return hidden, weight, random_tokens(TOKENS), torch.rand(TOKENS) > 0.3


# Whatever the size of a slice.


@pytest.mark.usefixtures("sliced")
def test_sum_and_gradients_equal_the_plain_ones(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets, mask = inputs
    plain = (F.cross_entropy(hidden @ weight.t(), targets, reduction="none") * mask).sum()
    ours = summed_cross_entropy(hidden, weight, targets, mask)
    torch.testing.assert_close(ours, plain)
    expected = torch.autograd.grad(3 * plain, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(3 * ours, (hidden, weight)), expected)


@pytest.mark.usefixtures("sliced")
def test_token_losses_and_gradients_equal_the_plain_ones(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets, _ = inputs
    plain = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    ours = token_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(ours, plain)
    grad_output = torch.randn(TOKENS, dtype=torch.float64)
    expected = torch.autograd.grad(plain, (hidden, weight), grad_output)
    torch.testing.assert_close(torch.autograd.grad(ours, (hidden, weight), grad_output), expected)


@pytest.mark.usefixtures("sliced")
def test_without_gradients_the_sum_is_the_same(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    with torch.no_grad():
        silent = summed_cross_entropy(*inputs)
    torch.testing.assert_close(silent, summed_cross_entropy(*inputs).detach())


def test_masked_targets_may_be_anything(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets, mask = inputs
    expected = summed_cross_entropy(hidden, weight, targets, mask)
    assert torch.equal(summed_cross_entropy(hidden, weight, targets.masked_fill(~mask, -100), mask), expected)


def test_a_frozen_readout_gets_no_gradient(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """RETROfit freezes it, and its gradient is the largest tensor of the loss."""
    hidden, weight, targets, mask = inputs
    frozen = weight.detach()
    summed_cross_entropy(hidden, frozen, targets, mask).backward()
    assert frozen.grad is None
    expected = torch.autograd.grad(summed_cross_entropy(hidden, weight, targets, mask), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected)


def test_the_logits_of_all_tokens_are_never_in_memory(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "slice_limit", lambda device: 5 * VOCABULARY)
    with LargestTensor() as largest:
        summed_cross_entropy(*inputs).backward()
    assert largest.entries <= max(5 * VOCABULARY, TOKENS * WIDTH)


def test_the_paper_s_vocabulary_is_cut_into_slices_of_131_tokens() -> None:
    hidden, weight = torch.empty(1_000, 1), torch.empty(128_000, 1, device="meta")
    slices = list(cross_entropy.token_slices(hidden, weight))
    assert {s.stop - s.start for s in slices} == {131}
    assert [s.start for s in slices] == list(range(0, 1_000, 131))


def test_half_precision_sums_in_float32(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets, mask = inputs
    exact = summed_cross_entropy(hidden, weight, targets, mask)
    narrow = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    with torch.autocast("cpu", torch.bfloat16):
        rough = summed_cross_entropy(narrow[0], narrow[1], targets, mask)
    rough.backward()
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), exact, rtol=0.02, atol=0)
    expected = torch.autograd.grad(exact, (hidden, weight))
    for tensor, gradient in zip(narrow, expected, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32
        assert (tensor.grad - gradient).norm() < 0.03 * gradient.norm()


def test_the_models_loss_is_the_masked_sum_of_its_token_losses() -> None:
    model, tokens, targets = small_model(), random_tokens(2, 11), random_tokens(2, 11, seed=2)
    neighbors, mask = random_tokens(2, 2, 2, 8, seed=3), torch.rand(2, 11) > 0.5
    losses = model.token_losses(tokens, targets, neighbors)
    assert losses.shape == (2, 11)
    torch.testing.assert_close(model.loss(tokens, targets, mask, neighbors), losses[mask].sum())
    with torch.no_grad():  # as scoring adds them up: to the last bit
        assert model.loss(tokens, targets, mask, neighbors) == (losses * mask).sum()


def test_losses_are_nats() -> None:
    """A model that knows nothing loses ln V per token."""
    model = small_model().float()
    with torch.no_grad():
        model.embedding.weight.zero_()
    losses = model.token_losses(random_tokens(1, 5), random_tokens(1, 5))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, torch.full((1, 5), math.log(VOCABULARY)))
