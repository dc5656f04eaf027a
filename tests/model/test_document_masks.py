"""`model.document_masks`: documents that share a sequence know nothing of each other."""

import pytest
import torch
from model_builders import random_tokens, small_choices, small_model, small_size
from torch import Tensor

from retro_lab.model.retro import RetroModel

M, K, R = 4, 2, 8
LENGTHS = (8, 4, 7)
"""Tokens of three documents, each on a chunk boundary; the last ends in an incomplete chunk."""
STARTS = (0, 8, 12)
DOCUMENTS = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))[None]


@pytest.fixture
def tokens() -> Tensor:
    return random_tokens(1, sum(LENGTHS))


@pytest.fixture
def neighbors() -> Tensor:
    return random_tokens(1, sum(LENGTHS) // M, K, R, seed=2)


def model_with(positions: str, *, masks: bool = True) -> RetroModel:
    return small_model(small_size(encoder_ca_layers=[1, 2]), small_choices(positions=positions, document_masks=masks))


def logits(model: RetroModel, *inputs: Tensor | None) -> Tensor:
    with torch.no_grad():
        return model.logits(model(*inputs))


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
@pytest.mark.parametrize("retrieval", [True, False])
@pytest.mark.parametrize("document", range(3))
def test_a_packed_document_reads_as_it_does_alone(
    tokens: Tensor, neighbors: Tensor, positions: str, retrieval: bool, document: int
) -> None:
    start, end = STARTS[document], STARTS[document] + LENGTHS[document]
    retrieved = neighbors if retrieval else None
    own = neighbors[:, start // M : end // M] if retrieval else None
    packed = logits(model_with(positions), tokens, retrieved, None, DOCUMENTS)[:, start:end]
    alone = logits(model_with(positions, masks=False), tokens[:, start:end], own)
    torch.testing.assert_close(packed, alone, rtol=1e-11, atol=1e-11)
    unmasked = logits(model_with(positions, masks=False), tokens, retrieved)[:, start:end]
    assert torch.allclose(unmasked, alone) == (document == 0)  # the first has nothing before it


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
def test_neighbors_of_the_previous_documents_last_chunk_end_with_it(
    tokens: Tensor, neighbors: Tensor, positions: str
) -> None:
    """RET(C_2) reaches the last token of C_2, position 8, and nothing of the next document, which starts after it."""
    model, changed = model_with(positions), neighbors.clone()
    changed[:, 1] = (changed[:, 1] + 1) % 7
    before, after = (logits(model, tokens, given, None, DOCUMENTS) for given in (neighbors, changed))
    assert ((before - after).abs().amax(dim=(0, 2)) > 1e-9).nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
def test_one_document_is_no_mask(tokens: Tensor, neighbors: Tensor, positions: str) -> None:
    masked = logits(model_with(positions), tokens, neighbors, None, torch.zeros_like(tokens))
    torch.testing.assert_close(masked, logits(model_with(positions, masks=False), tokens, neighbors))


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
def test_gradients_stay_within_the_document(tokens: Tensor, neighbors: Tensor, positions: str) -> None:
    """No token of documents 1 and 3 has a part in the loss of document 2."""
    model = model_with(positions)
    mask = DOCUMENTS == 1
    embedded: list[Tensor] = []
    model.embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    loss = model.loss(tokens, tokens, mask, neighbors, None, DOCUMENTS)
    (gradient,) = torch.autograd.grad(loss, embedded[0])
    assert torch.equal(gradient.abs().amax(dim=2) > 0, mask)


@pytest.mark.parametrize("masks", [True, False])
def test_documents_are_given_exactly_where_they_are_used(tokens: Tensor, masks: bool) -> None:
    """Forgotten or ignored documents would look like masks that make no difference."""
    with pytest.raises(ValueError, match=rf"document_masks={str(masks).lower()} takes"):
        model_with("rotary", masks=masks)(tokens, None, None, None if masks else DOCUMENTS)


def test_documents_of_another_shape_are_refused(tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"documents must be \[1, 19\]"):
        model_with("rotary")(tokens, None, None, DOCUMENTS[:, :-1])
