"""Forward pass and loss are one graph for torch.compile, whatever is chosen; what it computes is the same.

`aot_eager` traces as Inductor does, forward and backward, and then runs the operations as they are.
"""

from typing import Any

import pytest
import torch
from model_builders import random_tokens, small_choices, small_model, small_size
from torch import Tensor

from retro_lab.model.retro import RetroModel

M, K = 4, 2

# id, changes of the model, of the size, k, whether neighbors have padding, checkpointing, a frozen decoder
CASES: list[tuple[str, dict[str, Any], dict[str, Any], int, bool, bool, bool]] = [
    ("default", {}, {}, K, True, False, False),
    ("no padding", {}, {}, K, False, False, False),
    ("rotary", {"positions": "rotary"}, {}, K, True, False, False),
    ("no positions in CCA", {"cca_positions": False}, {}, K, True, False, False),
    ("document masks", {"document_masks": True}, {}, K, True, False, False),
    ("dropout", {"dropout": 0.3}, {}, K, True, False, False),
    ("checkpointing", {}, {}, K, True, True, False),
    ("checkpointing, rotary", {"positions": "rotary"}, {}, K, True, True, False),
    ("RETROfit", {}, {}, K, True, False, True),
    ("own read-out", {"tied_readout": False}, {}, K, True, False, False),
    ("off", {}, {}, 0, False, False, False),
    ("baseline", {}, {"cca_layers": []}, 0, False, False, False),
]


def case_inputs(model: RetroModel, k: int, padded: bool) -> tuple[Tensor | None, ...]:
    tokens = random_tokens(2, 3 * M + 2)
    neighbors = random_tokens(2, 3, k, 2 * M, seed=3) if k else None
    lengths = random_tokens(2, 3, k, seed=4) % (2 * M + 1) if padded else None
    documents = torch.arange(tokens.shape[1]).div(5, rounding_mode="floor").expand_as(tokens)
    mask = torch.ones_like(tokens).bool()
    return tokens, tokens.roll(1), mask, neighbors, lengths, documents if model.document_masks else None


@pytest.mark.parametrize(
    ("choices", "size", "k", "padded", "checkpointed", "frozen"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_forward_and_loss_are_one_graph(
    choices: dict[str, Any], size: dict[str, Any], k: int, padded: bool, checkpointed: bool, frozen: bool
) -> None:
    torch._dynamo.reset()
    model = small_model(small_size(**size), small_choices(**choices))
    model.checkpoint_activations(checkpointed)
    trained = list(model.parameters())
    if frozen:
        trained = [parameter for _, parameter in model.retrieval_parameters()]
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is other for other in trained))
    inputs = case_inputs(model, k, padded)
    results = []
    for function in (model.loss, torch.compile(model.loss, fullgraph=True, dynamic=False, backend="aot_eager")):
        torch.manual_seed(0)
        loss = function(*inputs)
        results.append([loss, *torch.autograd.grad(loss, trained, allow_unused=True)])
    for expected, actual in zip(*results, strict=True):
        assert (expected is None) == (actual is None)
        if expected is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_autocast_in_a_graph_is_autocast_outside() -> None:
    """Attention and loss are operations of their own there, and pick their precision themselves."""
    torch._dynamo.reset()
    model = small_model(model=small_choices(init_std=0.2)).float()
    inputs = case_inputs(model, K, True)
    results = []
    for function in (model.loss, torch.compile(model.loss, fullgraph=True, dynamic=False, backend="aot_eager")):
        with torch.autocast("cpu", torch.bfloat16):
            loss = function(*inputs)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)


def test_the_graph_holds_no_tiles() -> None:
    """The graph of a long sequence is as large as that of a short one."""
    sizes = []
    for length in (2 * M, 400):
        torch._dynamo.reset()
        model, tokens = small_model(), random_tokens(1, length)
        explained = torch._dynamo.explain(model.loss)(tokens, tokens, torch.ones_like(tokens).bool())
        assert explained.graph_break_count == 0
        sizes.append(explained.op_count)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("positions", [True, False])
def test_operations_in_the_graph_know_the_shapes_of_their_results(positions: bool) -> None:
    from retro_lab.model.kernels import relative_attention as attention

    queries, keys = torch.randn(2, 3, 1, 4, 5), torch.randn(2, 3, 2, 4, 5)
    biases = [torch.randn(2, 5), torch.randn(2, 5)] if positions else [None, None]
    distances = torch.randn(2, 5, 8) if positions else None
    arguments = [queries, *biases, keys, keys.clone(), distances, None, None, False]
    torch.library.opcheck(attention._attend_in_graph, arguments)
    torch.library.opcheck(attention._gradients_in_graph, [*arguments, torch.ones_like(queries)])


@pytest.mark.parametrize("trained", [True, False])
def test_the_loss_in_the_graph_knows_the_shapes_of_its_results(trained: bool) -> None:
    from retro_lab.model.kernels.cross_entropy import _loss_and_gradients_in_graph

    hidden, weight, targets = torch.randn(7, 3), torch.randn(11, 3), torch.arange(7)
    for dtype in (torch.float32, torch.bfloat16):
        for bias, cap in ((None, None), (torch.randn(11), 3.0)):
            arguments = [
                hidden,
                targets,
                targets > 2,
                weight,
                bias,
                2.0,
                cap,
                dtype,
                trained,
                trained and bias is not None,
            ]
            torch.library.opcheck(_loss_and_gradients_in_graph, arguments)
