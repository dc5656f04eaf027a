"""RETROfit rests on names: what a baseline lacks is what `retrieval_parameters` lists."""

import pytest
import torch
from model_builders import VOCABULARY, random_tokens, small_choices, small_model, small_size

from retro_lab.model.retro import RetroModel


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_baseline_loads_into_retro_and_lacks_exactly_the_retrieval_parameters(shared: bool, tied: bool) -> None:
    choices = small_choices(shared_embeddings=shared, tied_readout=tied)
    baseline = RetroModel(small_size(cca_layers=[], encoder_width=8), choices, VOCABULARY)
    retro = RetroModel(small_size(encoder_width=8), choices, VOCABULARY)
    result = retro.load_state_dict(baseline.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert sorted(result.missing_keys) == sorted(name for name, _ in retro.retrieval_parameters())
    assert not list(baseline.retrieval_parameters())


def test_training_the_retrieval_parameters_alone_keeps_retrieval_off_bit_for_bit() -> None:
    """RETROfit preserves the base model exactly (Borgeaud et al. 2022, section 4.2)."""
    retro, tokens, neighbors = small_model().float(), random_tokens(2, 14), random_tokens(2, 3, 2, 8, seed=2)
    with torch.no_grad():
        before = retro(tokens)
    retro.requires_grad_(False)
    trained = [parameter.requires_grad_(True) for _, parameter in retro.retrieval_parameters()]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    retro.loss(tokens, tokens, torch.ones_like(tokens).bool(), neighbors).backward()
    assert all(parameter.grad is not None for parameter in trained)
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(retro(tokens), before)
        assert not torch.equal(retro(tokens, neighbors), before)


def test_one_seed_gives_baseline_and_retro_the_same_decoder() -> None:
    torch.manual_seed(5)
    baseline = RetroModel(small_size(cca_layers=[]), small_choices(), VOCABULARY)
    torch.manual_seed(5)
    retro = RetroModel(small_size(), small_choices(), VOCABULARY)
    weights = retro.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in baseline.state_dict().items())


def test_a_model_built_on_the_meta_device_is_filled_by_reset_parameters() -> None:
    with torch.device("meta"):
        meta = RetroModel(small_size(), small_choices(), VOCABULARY)
    usual = RetroModel(small_size(), small_choices(), VOCABULARY)
    meta.to_empty(device="cpu")
    for model in (meta, usual):
        torch.manual_seed(1)
        model.reset_parameters()
    expected = usual.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in meta.state_dict().items())


def test_initial_weights_have_the_stated_spread() -> None:
    size = small_size(width=64, ffw_width=256, layers=8, cca_layers=[2], encoder_width=64, encoder_ffw_width=256)
    model = RetroModel(size, small_choices(init_std=0.02), 500)
    weights = dict(model.named_parameters())
    assert weights["embedding.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["layers.0.feed_forward.block.input.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["layers.0.feed_forward.block.output.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert weights["encoder.layers.0.feed_forward.block.output.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    assert all(torch.equal(w, torch.ones_like(w)) for name, w in weights.items() if name.endswith("norm.weight"))
