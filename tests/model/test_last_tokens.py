"""The last tokens of a sequence, given what the tokens before them left, get what a pass over all tokens gives them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_builders import random_tokens, small_choices, small_model, small_size
from torch import Tensor

from retro_lab.model.attention import attend, merge_heads, split_heads
from retro_lab.model.chunked_cross_attention import ChunkedCrossAttention
from retro_lab.model.distances import POSITIONS
from retro_lab.model.kernels import relative_attention
from retro_lab.model.retro import RetroModel

M, K, R, BATCH = 4, 2, 8, 2


def model_with(positions: str) -> RetroModel:
    return small_model(small_size(), small_choices(positions=positions))


def random_states(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)


def random_documents(length: int) -> Tensor:
    """Documents of each token, different in the two sequences, that change anywhere."""
    return (random_tokens(BATCH, length, seed=5) % 4 == 0).cumsum(dim=1)


def assert_equal_with_gradients(actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Compare results, and gradients of a random function of them."""
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    grad_output = torch.randn_like(expected)
    gradients = (torch.autograd.grad(result, inputs, grad_output, allow_unused=True) for result in (actual, expected))
    for of_actual, of_expected in zip(*gradients, strict=True):
        assert (of_actual is None) == (of_expected is None)
        if of_expected is not None:
            torch.testing.assert_close(of_actual, of_expected, rtol=1e-11, atol=1e-11)


@given(
    positions=st.sampled_from(POSITIONS),
    keys=st.integers(1, 23),
    queries=st.integers(1, 23),
    masked=st.booleans(),
    block=st.sampled_from([1, 3, 128]),
)
def test_the_last_queries_of_self_attention(positions: str, keys: int, queries: int, masked: bool, block: int) -> None:
    """With keys and values of all tokens, as a cache holds them, and queries of the last tokens alone."""
    queries = min(queries, keys)
    model = model_with(positions)
    attention, hidden = model.layers[0].attention.block, random_states(BATCH, keys, 8)
    documents = random_documents(keys) if masked else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relative_attention, "BLOCK", block)
        whole = attention(hidden, distances=model.distances.to_past(keys, keys, hidden), documents=documents)
        query, key, value = split_heads(attention.query_key_value(hidden).unsqueeze(1), attention.heads, parts=3)
        attended = attend(
            attention.positions,
            query[..., keys - queries :, :],
            key,
            value,
            model.distances.to_past(queries, keys, hidden),
            causal=True,
            documents=documents,
        )
        last = attention.output(merge_heads(attended).squeeze(1))
        assert_equal_with_gradients(last, whole[:, keys - queries :], [hidden, *attention.parameters()])


@pytest.mark.parametrize("positions", POSITIONS)
def test_causal_attention_needs_a_key_for_each_query(positions: str) -> None:
    model, vectors = model_with(positions), random_states(2, BATCH, 1, 3, 6)
    distances, learned = model.distances.to_past(3, 3, vectors), model.layers[0].attention.block.positions
    with pytest.raises(ValueError, match="3 causal queries need at least as many keys, not 2"):
        attend(learned, vectors, vectors[..., :2, :], vectors[..., :2, :], distances, causal=True)


@given(
    positions=st.sampled_from(POSITIONS),
    length=st.integers(M, 4 * M + 1),
    offset=st.integers(0, 4 * M),
    padded=st.booleans(),
    masked=st.booleans(),
)
def test_the_last_tokens_of_chunked_cross_attention(
    positions: str, length: int, offset: int, padded: bool, masked: bool
) -> None:
    """From any token on: within a chunk, at its start or end, or before the first token that attends."""
    offset, chunks = min(offset, length - 1), length // M
    model = model_with(positions)
    cca, hidden = model.layers[1].cca.block, random_states(BATCH, length, 8)
    assert isinstance(cca, ChunkedCrossAttention)
    encoded = random_states(BATCH, chunks, K, R, 6, seed=2)
    lengths = random_tokens(BATCH, chunks, K, 1, seed=3) % (R + 1)
    inputs = {
        "encoded": encoded,
        "distances": model.distances.between(M, R, M - 1, hidden),
        "present": torch.arange(R) < lengths if padded else None,
        # Documents start on chunk boundaries.
        "documents": random_documents(chunks + 1).repeat_interleave(M, dim=1)[:, :length] if masked else None,
    }
    whole, last = cca(hidden, **inputs), cca(hidden[:, offset:], **inputs, offset=offset)
    assert_equal_with_gradients(last, whole[:, offset:], [hidden, encoded, *cca.parameters()])


def test_blocks_pass_the_offset_on() -> None:
    """The residual block, checkpointed too, is called as its attention is."""
    model, hidden = model_with("transformer_xl"), random_states(BATCH, 2 * M + 1, 8)
    layer, encoded = model.layers[1], random_states(BATCH, 2, K, R, 6, seed=2)
    distances = model.distances.between(M, R, M - 1, hidden)
    whole = layer.cca(hidden, encoded=encoded, distances=distances)[:, M + 2 :]
    for checkpointed in (False, True):
        model.checkpoint_activations(checkpointed)
        last = layer.cca(hidden[:, M + 2 :], encoded=encoded, distances=distances, offset=M + 2)
        assert_equal_with_gradients(last, whole, [hidden, encoded])
        whole = layer.cca(hidden, encoded=encoded, distances=distances)[:, M + 2 :]
