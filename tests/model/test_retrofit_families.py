"""RETROfit leaves every Hugging Face decoder as it is: with neighbors off, bit for bit; with them on, at the start."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from tiny_bases import FAMILIES, M, random_tokens, retrofitted, tiny_base

from retro_lab.errors import ConfigurationError
from retro_lab.model.backbones.layouts import LAYOUTS
from retro_lab.model.backbones.retrofitted import RetrofittedModel

TOKENS, TARGETS, NEIGHBORS = random_tokens(2, 14), random_tokens(2, 14, seed=2), random_tokens(2, 3, 2, 2 * M, seed=3)
MASK = torch.rand(2, 14, generator=torch.Generator().manual_seed(4)) < 0.7


@cache
def exact(family: str, dtype: torch.dtype = torch.float64) -> RetrofittedModel:
    """A model in which neighbors matter; tests leave it as it is."""
    return retrofitted(tiny_base(family, dtype), opened=True)


def test_every_layout_has_a_tiny_model() -> None:
    assert {architecture for architecture, _ in FAMILIES.values()} == set(LAYOUTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_left_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    """Off, before and after training; and on, before training. Only new parameters get gradients, all of them soon."""
    base = tiny_base(family, dtype)
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    with torch.no_grad():
        expected = base(TOKENS).logits
    model = retrofitted(base).train()
    new = dict(model.retrieval_parameters())

    def assert_off() -> None:
        with torch.no_grad():
            assert torch.equal(model.logits(model(TOKENS)), expected)
            assert torch.equal(base(TOKENS).logits, expected)

    assert_off()
    with torch.no_grad():
        assert torch.equal(model.logits(model(TOKENS, NEIGHBORS)), expected), "training starts from the base's logits"
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model.loss(TOKENS, TARGETS, MASK, NEIGHBORS).backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in new.values())
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in new)
    assert_off()
    assert all(torch.equal(value, weights[name]) for name, value in base.state_dict().items())
    with torch.no_grad():
        assert not torch.equal(model.logits(model(TOKENS, NEIGHBORS)), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_bases_logits(family: str) -> None:
    """With biases, divisors and caps; its gradient too."""
    model = exact(family)
    hidden = model(TOKENS, NEIGHBORS).detach().requires_grad_()
    losses = F.cross_entropy(model.logits(hidden).flatten(0, 1), TARGETS.flatten(), reduction="none").view(2, -1)
    torch.testing.assert_close(model.token_losses(TOKENS, TARGETS, NEIGHBORS), losses)
    nats, hits = model.token_losses_and_hits(TOKENS, TARGETS, MASK, NEIGHBORS)
    torch.testing.assert_close(nats, losses)
    assert torch.equal(hits, (model.logits(hidden).argmax(-1) == TARGETS) & MASK)
    (expected,) = torch.autograd.grad((losses * MASK).sum(), hidden)
    model_of_hidden = _Reads(model, hidden)
    total = model_of_hidden.loss(TOKENS, TARGETS, MASK)
    torch.testing.assert_close(total, (losses * MASK).sum())
    torch.testing.assert_close(torch.autograd.grad(total, hidden)[0], expected)


class _Reads(RetrofittedModel):
    """The head of a model, which reads given hidden states."""

    def __init__(self, model: RetrofittedModel, hidden: torch.Tensor) -> None:
        self.__dict__ |= {**model.__dict__, "hidden": hidden}

    def forward(self, *_: object) -> torch.Tensor:
        return self.hidden


@pytest.mark.parametrize("family", FAMILIES)
def test_a_neighbor_changes_logits_only_after_its_chunk(family: str) -> None:
    """From the last token of the chunk that retrieved it on; another sequence is not changed."""
    model, changed = exact(family), NEIGHBORS.clone()
    changed[0, 1] = random_tokens(2, 2 * M, seed=9)
    with torch.no_grad():
        before, after = model(TOKENS, NEIGHBORS), model(TOKENS, changed)
    differs = (before - after).abs().amax(-1) > 1e-9
    first = 2 * M - 1
    assert not differs[1].any()
    assert not differs[0, :first].any()
    assert differs[0, first:].all()
    with torch.no_grad():
        assert torch.equal(model(TOKENS, NEIGHBORS)[:, : M - 1], model(TOKENS)[:, : M - 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_left_changes_nothing(family: str) -> None:
    # Gemma 2 takes the softmax in float32, where its mask for padding, the lowest float64, would be infinite.
    dtype, tolerance = (torch.float32, 1e-5) if family == "gemma2" else (torch.float64, 1e-10)
    model, padding = exact(family, dtype), M
    tokens = F.pad(TOKENS, (padding, 0), value=7)
    neighbors = F.pad(NEIGHBORS, (0, 0, 0, 0, 1, 0))
    lengths = torch.full(neighbors.shape[:3], 2 * M)
    lengths[:, 0] = 0
    with torch.no_grad():
        for given, shifted in (((), ()), ((NEIGHBORS,), (neighbors, lengths))):
            expected = model(TOKENS, *given)
            found = model(tokens, *shifted, padding=torch.tensor([padding] * 2))
            torch.testing.assert_close(found[:, padding:], expected, rtol=0, atol=tolerance)
            found = model(tokens, *shifted, padding=torch.tensor([padding, 0]))
            torch.testing.assert_close(found[:1, padding:], expected[:1], rtol=0, atol=tolerance)


def test_another_architecture_is_refused_by_name() -> None:
    FAMILIES["bloom"] = ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2})
    try:
        with pytest.raises(
            ConfigurationError, match=r"'bloom' cannot be RETROfitted; these can: falcon, .*starcoder2\.$"
        ):
            retrofitted(tiny_base("bloom"))
    finally:
        del FAMILIES["bloom"]
