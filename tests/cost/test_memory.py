"""Estimated activations against what a real forward pass leaves behind for its backward pass."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from model_builders import small_choices, small_size
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from retro_lab.cost.memory import Precision, activation_bytes
from retro_lab.model.blocks import Branch
from retro_lab.model.retro import RetroModel

SIZE = small_size(
    width=64,
    ffw_width=224,
    heads=4,
    head_size=24,
    encoder_width=48,
    encoder_ffw_width=96,
    encoder_heads=2,
    encoder_head_size=16,
)
FLOAT32, MIXED = Precision(4, 4), Precision(4, 2)
B, N, M, R, V = 16, 128, 16, 32, 100
CHOICES: list[dict[str, Any]] = [
    {},
    {"cca_positions": False},
    {"query_conditioning": False},
    {"positions": "rotary"},
    {"positions": "rotary", "cca_positions": False},
]


def saved_bytes(precision: Precision, without: list[Tensor], compute: Callable[[], Tensor]) -> int:
    """Bytes of all memory that `compute` keeps for its backward pass, but for that of some tensors."""
    known = {tensor.untyped_storage().data_ptr() for tensor in without}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    precise = torch.autocast("cpu", torch.bfloat16) if precision.casts else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precise:
        compute()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in known)


def cast_bytes(module: torch.nn.Module) -> int:
    """Bytes of the copies that autocast makes of weights."""
    return sum(2 * part.weight.numel() for part in module.modules() if isinstance(part, torch.nn.Linear))


def loss(model: RetroModel, k: int) -> Tensor:
    """Loss of a batch with full neighbors."""
    tokens = torch.zeros(B, N, dtype=torch.long)
    return model.loss(tokens, tokens, tokens.bool(), torch.zeros(B, N // M, k, R, dtype=torch.long) if k else None)


def estimate(precision: Precision, k: int, choices: dict[str, Any], **options: Any) -> int:
    shape = {"sequences": B, "sequence_length": N, "k": k, "neighbor_length": R}
    return activation_bytes(SIZE, small_choices(chunk_length=M, **choices), V, precision, **shape, **options)


@pytest.mark.parametrize("precision", [FLOAT32, MIXED], ids=["float32", "mixed"])
@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_activations(precision: Precision, k: int, choices: dict[str, Any]) -> None:
    model = RetroModel(SIZE, small_choices(chunk_length=M, **choices), V)
    used = (
        model
        if k
        else torch.nn.ModuleList(block for layer in model.layers for block in (layer.attention, layer.feed_forward))
    )
    kept = saved_bytes(precision, list(model.parameters()), lambda: loss(model, k))
    assert kept - cast_bytes(used) * precision.casts == pytest.approx(estimate(precision, k, choices), rel=0.015)


@pytest.mark.parametrize("precision", [FLOAT32, MIXED], ids=["float32", "mixed"])
@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_activations_of_checkpointed_blocks(
    precision: Precision, k: int, choices: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RetroModel(SIZE, small_choices(chunk_length=M, **choices), V)
    forward, calls = Branch.forward, []

    def checkpointed(block: Branch, hidden: Tensor, **inputs: Any) -> Any:
        def run(hidden: Tensor, *values: Any) -> Tensor:
            return forward(block, hidden, **dict(zip(inputs, values, strict=True)))

        calls.append((block, hidden, inputs))
        return checkpoint(run, hidden, *inputs.values(), use_reentrant=True)

    monkeypatch.setattr(Branch, "forward", checkpointed)
    kept = saved_bytes(precision, list(model.parameters()), lambda: loss(model, k))
    at_work = []
    for block, given_hidden, inputs in calls:
        hidden = given_hidden.detach().requires_grad_()
        given = [hidden, given_hidden, *(given for given in inputs.values() if isinstance(given, Tensor))]
        saved = saved_bytes(
            precision,
            [*model.parameters(), *given],
            lambda block=block, hidden=hidden, inputs=inputs: forward(block, hidden, **inputs),
        )
        at_work.append(saved - cast_bytes(block) * precision.casts)
    assert kept + max(at_work) == pytest.approx(estimate(precision, k, choices, checkpointing=True), rel=0.03)
