"""Padding before the text changes nothing of the text, in any attention and in no bit."""

from typing import Any

import pytest
import torch
from model_builders import VOCABULARY, random_tokens, small_choices, small_model, small_size
from torch import Tensor

from retro_lab.model.retro import RetroModel

PADDING = torch.tensor([0, 1, 3, 2])
LENGTH, NEIGHBORS, NEIGHBOR_LENGTH = 7, 3, 8
"""One complete chunk of 4 tokens, and 3 tokens that attend to its neighbors."""


def inputs(padding_token: int, lengths: Tensor | None = None, **others: Any) -> dict[str, Any]:
    """Sequences in which every token of padding, in front of the text and after neighbors, is `padding_token`."""
    tokens, neighbors = random_tokens(4, LENGTH), random_tokens(4, 1, NEIGHBORS, NEIGHBOR_LENGTH, seed=2)
    lengths = torch.tensor([[8, 5, 0], [1, 8, 8], [0, 0, 0], [8, 8, 2]])[:, None] if lengths is None else lengths
    tokens = tokens.masked_fill(torch.arange(LENGTH) < PADDING[:, None], padding_token)
    neighbors = neighbors.masked_fill(torch.arange(NEIGHBOR_LENGTH) >= lengths[..., None], padding_token)
    return {"tokens": tokens, "neighbors": neighbors, "neighbor_lengths": lengths, "padding": PADDING, **others}


MODELS = [
    {},
    {"positions": "rotary"},
    {"document_masks": True},
    {"positions": "rotary", "document_masks": True},
    {"query_conditioning": False},
]


IS_TEXT = torch.arange(LENGTH) >= PADDING[:, None]


def read(model: RetroModel, given: dict[str, Any]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Hidden states of the text, its loss, and all gradients."""
    model.zero_grad()
    if model.document_masks:
        given = given | {"documents": torch.zeros(4, LENGTH, dtype=torch.int64)}
    loss = model.loss(**given, targets=random_tokens(4, LENGTH, seed=3), mask=IS_TEXT)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    return model(**given)[IS_TEXT], loss, gradients


def assert_equal(one: tuple[Tensor, Tensor, list[Tensor]], other: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert all(map(torch.equal, one[2], other[2]))


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("choices", MODELS, ids=str)
def test_padding_may_be_any_number(choices: dict[str, Any], precision: torch.dtype) -> None:
    """It changes no bit of the states, the loss and the gradients."""
    model = small_model(model=small_choices(**choices)).to(precision)
    assert_equal(read(model, inputs(-1)), read(model, inputs(VOCABULARY - 1)))


@pytest.mark.parametrize("precision", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("choices", MODELS, ids=str)
def test_nothing_attends_to_padding(choices: dict[str, Any], precision: torch.dtype) -> None:
    """The model embeds padding as token 0: that embedding changes no bit of text without this token, nor is it trained.

    In half precision it may change how gradients are rounded.
    """
    model = small_model(model=small_choices(tied_readout=False, **choices)).to(precision)
    embeddings = [table.weight for table in (model.embedding, model.encoder.embedding)]
    given = inputs(0)
    given |= {name: given[name].clamp(min=1) for name in ("tokens", "neighbors")}
    found = read(model, given)
    assert all((weight.grad[0] == 0).all() for weight in embeddings)
    with torch.no_grad():
        for weight in embeddings:
            weight[0] = torch.randn(weight.shape[1]) * 3
    assert_equal(found, read(model, given))


@pytest.mark.parametrize("choices", [{}, {"positions": "rotary"}], ids=str)
def test_padded_text_is_read_as_text_alone(choices: dict[str, Any]) -> None:
    """Positions are relative, so a baseline gives padded text the states that it gives the text by itself."""
    model = small_model(small_size(cca_layers=[]), small_choices(**choices))
    given = inputs(5)
    padded = model(given["tokens"], padding=PADDING)
    for row, padding in enumerate(PADDING.tolist()):
        alone = model(given["tokens"][row : row + 1, padding:])
        torch.testing.assert_close(padded[row : row + 1, padding:], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("choices", [{}, {"positions": "rotary"}], ids=str)
def test_neighbors_are_read_by_the_text_of_their_chunk(choices: dict[str, Any]) -> None:
    """Each part sees what it must: text of the chunk conditions the encoder, and the answer attends to neighbors."""
    model = small_model(model=small_choices(**choices))
    given = inputs(0)
    whole = model(**given)
    for row, place in ((1, 1), (3, 3)):  # tokens of the question that are no padding
        changed = given["tokens"].clone()
        changed[row, place] = (changed[row, place] + 1) % VOCABULARY
        assert not torch.allclose(model(**given | {"tokens": changed})[row, -1], whole[row, -1])
    without = model(**given | {"neighbor_lengths": torch.zeros_like(given["neighbor_lengths"])})
    assert torch.equal(without[:, :3], whole[:, :3])
    assert not torch.isclose(without[[0, 1, 3], 3:], whole[[0, 1, 3], 3:]).all(-1).any()
    assert torch.equal(without[2], whole[2])  # which has no neighbors
    assert torch.isfinite(whole).all()


def test_no_padding_is_the_same_as_none() -> None:
    model, given = small_model(), inputs(0)
    none = model(**given | {"padding": torch.zeros(4, dtype=torch.int64)})
    torch.testing.assert_close(none, model(**given | {"padding": None}), rtol=1e-12, atol=1e-12)
