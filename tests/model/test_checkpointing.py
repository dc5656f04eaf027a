"""Checkpointed blocks are computed once more and change nothing."""

import pytest
import torch
from model_builders import random_tokens, small_choices, small_model
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from retro_lab.model.retro import RetroModel


def loss(model: RetroModel, seed: int = 0) -> Tensor:
    """Loss of fixed random data, a missing neighbor among it."""
    torch.manual_seed(seed)  # of dropout
    tokens, neighbors = random_tokens(2, 14), random_tokens(2, 3, 2, 8, seed=3)
    lengths = random_tokens(2, 3, 2, seed=4) % 9
    return model.loss(tokens, tokens.roll(1), torch.ones_like(tokens).bool(), neighbors, lengths)


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_loss_and_gradients_are_the_same_bit_for_bit(positions: str, dropout: float) -> None:
    model = small_model(model=small_choices(positions=positions, dropout=dropout))
    parameters = list(model.parameters())
    results = []
    for checkpointed in (False, True):
        model.checkpoint_activations(checkpointed)
        value = loss(model)
        results.append([value, *torch.autograd.grad(value, parameters)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_frozen_decoder_leaves_the_gradients_of_retrieval_the_same() -> None:
    """RETROfit with checkpointing: no input of the first blocks needs a gradient."""
    model = small_model()
    trained = [parameter for _, parameter in model.retrieval_parameters()]
    expected = torch.autograd.grad(loss(model), trained)
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is other for other in trained))
    model.checkpoint_activations()
    assert all(
        torch.equal(one, other) for one, other in zip(torch.autograd.grad(loss(model), trained), expected, strict=True)
    )


def test_little_is_kept_for_the_backward_pass() -> None:
    model = small_model()

    def kept() -> int:
        entries: dict[int, int] = {}
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                entries[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            result = loss(model)
        del result
        return sum(entries.values())

    everything = kept()
    model.checkpoint_activations()
    assert kept() < everything / 2


def test_nothing_is_checkpointed_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    model.checkpoint_activations()
    monkeypatch.setattr("retro_lab.model.blocks.checkpoint", None)  # would fail if it were called
    with torch.no_grad():
        loss(model)
