"""The fast model equals the slow one of `naive_retro.py`, in values and gradients."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builders import random_tokens, small_choices, small_model, small_size
from naive_retro import NaiveRetro
from torch import Tensor

from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.kernels import relative_attention
from retro_lab.model.retro import RetroModel


@dataclass
class Case:
    """A model and its input."""

    size: SizeConfig
    model: ModelConfig
    tokens: Tensor
    neighbors: Tensor | None
    lengths: Tensor | None
    documents: Tensor | None = None
    seed: int = 0
    block: int = relative_attention.BLOCK
    tile_limit: int = 2**20


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw every shape and choice that the model has, all of them small."""
    shared = draw(st.booleans())
    width = draw(st.sampled_from([2, 4, 6]))
    positions = draw(st.sampled_from(["transformer_xl", "rotary"]))
    head_sizes = st.integers(1, 3) if positions == "transformer_xl" else st.sampled_from([2, 4])
    layers, encoder_layers = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    size = small_size(
        width=width,
        ffw_width=draw(st.integers(1, 5)),
        heads=draw(st.integers(1, 2)),
        head_size=draw(head_sizes),
        layers=layers,
        cca_layers=draw(st.lists(st.integers(1, layers), unique=True, min_size=1)),
        encoder_width=width if shared else draw(st.sampled_from([2, 4])),
        encoder_ffw_width=draw(st.integers(1, 5)),
        encoder_heads=draw(st.integers(1, 2)),
        encoder_head_size=draw(head_sizes),
        encoder_layers=encoder_layers,
        encoder_ca_layers=draw(st.lists(st.integers(1, encoder_layers), unique=True)),
    )
    m, document_masks = draw(st.integers(1, 4)), draw(st.booleans())
    model = small_choices(
        chunk_length=m,
        positions=positions,
        document_masks=document_masks,
        rotary_base=draw(st.sampled_from([10_000.0, 10.0])),
        shared_embeddings=shared,
        query_conditioning=draw(st.booleans()),
        cca_positions=draw(st.booleans()),
        tied_readout=draw(st.booleans()),
        activation=draw(st.sampled_from(["gelu", "relu"])),
    )
    seed = draw(st.integers(0, 1000))
    batch, length = draw(st.integers(1, 2)), draw(st.integers(1, 3 * m + 1))
    k, r = draw(st.integers(1, 3)), draw(st.integers(1, 2 * m))
    chunks = length // m + draw(st.integers(0, 1))
    neighbors = lengths = None
    if draw(st.booleans()) or chunks == 0:
        neighbors = random_tokens(batch, chunks, k, r, seed=seed + 1)
        if draw(st.booleans()):
            lengths = torch.tensor(
                draw(st.lists(st.integers(0, r), min_size=batch * chunks * k, max_size=batch * chunks * k))
            ).view(batch, chunks, k)
    tokens = random_tokens(batch, length, seed=seed)
    documents = None
    if document_masks:
        starts = draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length))
        documents = torch.tensor(starts).view(batch, length).cumsum(dim=1)
    block, tile_limit = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2**20]))
    return Case(size, model, tokens, neighbors, lengths, documents, seed, block, tile_limit)


def naive_hidden_states(built: RetroModel, case: Case) -> Tensor:
    """Run the slow model on every sequence of the batch, with the weights (and the graph) of the fast one."""
    naive = NaiveRetro(dict(built.named_parameters()), case.size, case.model)
    sequences = []
    for b, sequence in enumerate(case.tokens.tolist()):
        retrieved = None
        if case.neighbors is not None:
            lengths = case.lengths if case.lengths is not None else torch.full(case.neighbors.shape[:3], 1_000)
            retrieved = [
                [tokens[:real] for tokens, real in zip(of_chunk, real_of_chunk, strict=True)]
                for of_chunk, real_of_chunk in zip(case.neighbors[b].tolist(), lengths[b].tolist(), strict=True)
            ]
        documents = None if case.documents is None else case.documents[b].tolist()
        sequences.append(torch.stack(naive.hidden_states(sequence, retrieved, documents)))
    return torch.stack(sequences)


def assert_equal_to_naive(case: Case) -> None:
    """Compare hidden states, summed losses and the gradients of all parameters, to 1e-10."""
    built = small_model(case.size, case.model, case.seed)
    targets, mask = random_tokens(*case.tokens.shape, seed=7), random_tokens(*case.tokens.shape, seed=8) > 5
    slow_states = naive_hidden_states(built, case)
    fast_states = built(case.tokens, case.neighbors, case.lengths, case.documents)
    torch.testing.assert_close(fast_states, slow_states, rtol=1e-10, atol=1e-10)

    logits = slow_states @ (built.embedding.weight if built.readout is None else built.readout.weight).t()
    probabilities = torch.softmax(logits, dim=-1)
    slow_loss = -(probabilities.gather(-1, targets[..., None])[..., 0].log() * mask).sum()
    fast_loss = built.loss(case.tokens, targets, mask, case.neighbors, case.lengths, case.documents)
    torch.testing.assert_close(fast_loss, slow_loss, rtol=1e-10, atol=1e-10)

    names, parameters = zip(*built.named_parameters(), strict=True)
    slow = torch.autograd.grad(slow_loss, parameters, allow_unused=True)
    fast = torch.autograd.grad(fast_loss, parameters, allow_unused=True)
    for name, parameter, expected, actual in zip(names, parameters, slow, fast, strict=True):
        expected, actual = (torch.zeros_like(parameter) if g is None else g for g in (expected, actual))
        torch.testing.assert_close(
            actual, expected, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"gradient of {name}: {text}"
        )


@settings(max_examples=100, deadline=None, database=None)
@given(cases())
def test_equals_the_naive_model_for_any_shape_and_choice(case: Case) -> None:
    """Also the test of peers' bugs 1 and 19: the positions of the attending chunk are the paper's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relative_attention, "BLOCK", case.block)
        patch.setattr(relative_attention, "tile_limit", lambda device: case.tile_limit)
        assert_equal_to_naive(case)


def test_equals_the_naive_model_with_ragged_chunks_and_missing_neighbors() -> None:
    """The hard case, always run: a chunk without neighbors, a missing one, partial ones, a ragged last chunk."""
    lengths = torch.tensor([[[0, 0], [8, 0], [3, 8]], [[1, 2], [0, 5], [0, 0]]])
    neighbors = random_tokens(2, 3, 2, 8, seed=3)
    case = Case(small_size(encoder_ca_layers=[1, 2]), small_choices(), random_tokens(2, 14), neighbors, lengths)
    assert_equal_to_naive(case)


@pytest.mark.parametrize("cca_positions", [False, True])
def test_equals_the_naive_model_at_the_smallest_shapes(cca_positions: bool) -> None:
    """One head, chunks and neighbors of one token: views of one number must not be written to as if they were many."""
    size = small_size(width=2, heads=1, head_size=1, encoder_width=2, encoder_heads=1, encoder_head_size=1)
    choices = small_choices(chunk_length=1, cca_positions=cca_positions)
    neighbors, lengths = random_tokens(1, 2, 2, 1, seed=3), torch.tensor([[[1, 0], [1, 1]]])
    for real in (None, lengths):
        assert_equal_to_naive(Case(size, choices, random_tokens(1, 2), neighbors, real))
