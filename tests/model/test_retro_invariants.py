"""What must hold for any RETRO, whatever its weights (design of the paper, section 2)."""

import pytest
import torch
from model_builders import VOCABULARY, random_tokens, small_choices, small_model, small_size
from torch import Tensor

from retro_lab.model.config import ModelConfig
from retro_lab.model.retro import RetroModel

M, K, R = 4, 2, 8
BATCH, LENGTH = 2, 15
CHUNKS = LENGTH // M


@pytest.fixture(params=["transformer_xl", "rotary"])
def choices(request: pytest.FixtureRequest) -> ModelConfig:
    """Both kinds of positions."""
    return small_choices(positions=request.param)


@pytest.fixture
def retro(choices: ModelConfig) -> RetroModel:
    """Both CCA layers, both encoder layers conditioned."""
    return small_model(small_size(encoder_ca_layers=[1, 2]), choices)


@pytest.fixture
def tokens() -> Tensor:
    """Three complete chunks and three tokens."""
    return random_tokens(BATCH, LENGTH)


@pytest.fixture
def neighbors() -> Tensor:
    """Two neighbors of 2M tokens for each complete chunk."""
    return random_tokens(BATCH, CHUNKS, K, R, seed=2)


def logits(model: RetroModel, *inputs: Tensor | None) -> Tensor:
    """Logits [B, N, V] without a graph."""
    with torch.no_grad():
        return model.logits(model(*inputs))


def other_token(tokens: Tensor) -> Tensor:
    """A different token for each token."""
    return (tokens + 1) % VOCABULARY


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of float64."""
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def changed_positions(before: Tensor, after: Tensor) -> list[int]:
    """Positions, counted from 1, at which any logit of any sequence moved."""
    moved = ((before - after).abs() > 1e-9).flatten(2).any(dim=2).any(dim=0)
    return (moved.nonzero().flatten() + 1).tolist()


# No logit depends on what comes after it.


@pytest.mark.parametrize("position", range(1, LENGTH + 1))
def test_a_token_changes_its_own_logits_and_none_before(
    retro: RetroModel, tokens: Tensor, neighbors: Tensor, position: int
) -> None:
    changed = tokens.clone()
    changed[:, position - 1] = other_token(tokens[:, position - 1])
    moved = changed_positions(logits(retro, tokens, neighbors), logits(retro, changed, neighbors))
    assert min(moved) == position


@pytest.mark.parametrize("chunk", range(1, CHUNKS + 1))
def test_neighbors_of_chunk_u_act_from_its_last_token_on(
    retro: RetroModel, tokens: Tensor, neighbors: Tensor, chunk: int
) -> None:
    """RET(C_u) moves no logit before position um; it moves that one and all later ones.

    Also peers' bug 18 (Mengzi): the same perplexity with any database, since retrieval never reached the model.
    """
    changed = neighbors.clone()
    changed[:, chunk - 1] = other_token(neighbors[:, chunk - 1])
    moved = changed_positions(logits(retro, tokens, neighbors), logits(retro, tokens, changed))
    assert moved == list(range(chunk * M, LENGTH + 1))


PRECISE = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types of a model's weights; autocast is from float32."""


@pytest.mark.parametrize("documents", [None, "masked"])
@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
@pytest.mark.parametrize(
    ("weights", "products"),
    [("float64", None), ("float32", None), ("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", None)],
)
def test_nothing_moves_an_earlier_logit_by_even_a_bit(
    weights: str, products: str | None, positions: str, documents: str | None
) -> None:
    """In every precision that is offered: what later text changes in rounding would still be a view of it."""
    size = small_size(width=32, ffw_width=64, head_size=16, encoder_width=32, encoder_head_size=16)
    choices = small_choices(positions=positions, init_std=0.3, document_masks=documents is not None)
    model = small_model(size, choices).to(PRECISE[weights])
    length = 150  # two blocks of queries
    text, retrieved = random_tokens(2, length), random_tokens(2, length // M, K, R, seed=2)
    of = None if documents is None else (torch.arange(length) >= 70).long().expand(2, length)
    lengths = torch.full((2, length // M, K), R)
    lengths[0, 0, 1] = 3

    def run(tokens: Tensor, neighbors: Tensor) -> Tensor:
        with torch.autocast("cpu", PRECISE.get(products or "", torch.bfloat16), enabled=products is not None):
            return logits(model, tokens, neighbors, lengths, of)

    before = run(text, retrieved)
    assert before.isfinite().all()
    for position in (2, 75, 129, length):
        changed = text.clone()
        changed[:, position - 1 :] = other_token(text[:, position - 1 :])
        after = run(changed, retrieved)
        assert torch.equal(after[:, : position - 1], before[:, : position - 1])
        assert not torch.equal(after[:, position - 1], before[:, position - 1])
    for chunk in (1, 20, length // M):
        other = retrieved.clone()
        other[:, chunk - 1 :] = other_token(retrieved[:, chunk - 1 :])
        after = run(text, other)
        assert torch.equal(after[:, : chunk * M - 1], before[:, : chunk * M - 1])
        assert not torch.equal(after[:, chunk * M - 1], before[:, chunk * M - 1])
    padded = retrieved.clone()
    padded[0, 0, 1, 3:] = -1
    assert torch.equal(run(text, padded), before)


def test_neighbors_of_an_incomplete_chunk_are_not_used(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    extra = random_tokens(BATCH, 1, K, R, seed=5)
    assert torch.equal(logits(retro, tokens, torch.cat([neighbors, extra], dim=1)), logits(retro, tokens, neighbors))


def test_a_neighbor_is_encoded_from_its_own_chunk_and_the_past_only(
    retro: RetroModel, tokens: Tensor, neighbors: Tensor
) -> None:
    """H_u conditions the encoder; H_{u+1} must not, although it is computed by then."""
    recorded: list[Tensor] = []
    assert retro.encoder is not None
    retro.encoder.register_forward_hook(lambda module, inputs, output: recorded.append(output))
    changed = tokens.clone()
    changed[:, M] = other_token(tokens[:, M])  # the first token of C_2
    logits(retro, tokens, neighbors)
    logits(retro, changed, neighbors)
    assert torch.equal(recorded[0][:, 0], recorded[1][:, 0])
    assert not torch.equal(recorded[0][:, 1], recorded[1][:, 1])


@pytest.mark.parametrize("length", range(1, LENGTH + 1))
def test_logits_of_a_prefix_are_the_prefix_of_the_logits(
    retro: RetroModel, tokens: Tensor, neighbors: Tensor, length: int
) -> None:
    """Peers' bug 6 (Megatron): the chunk grid was aligned to the right end if N is no multiple of M."""
    prefix = logits(retro, tokens[:, :length], neighbors[:, : length // M])
    assert_same(prefix, logits(retro, tokens, neighbors)[:, :length])


# RETRO[Off] is the baseline transformer.


def test_off_is_the_baseline_with_the_same_weights_bit_for_bit(choices: ModelConfig, tokens: Tensor) -> None:
    retro = small_model(model=choices).float()
    baseline = RetroModel(small_size(cca_layers=[]), choices, VOCABULARY)
    baseline.load_state_dict(
        {name: value for name, value in retro.state_dict().items() if name in baseline.state_dict()}
    )
    assert torch.equal(logits(retro, tokens), logits(baseline, tokens))


def test_all_neighbors_missing_is_off_bit_for_bit(choices: ModelConfig, tokens: Tensor, neighbors: Tensor) -> None:
    retro = small_model(model=choices).float()
    nothing = torch.zeros(BATCH, CHUNKS, K, dtype=torch.long)
    assert torch.equal(logits(retro, tokens, torch.full_like(neighbors, -1), nothing), logits(retro, tokens))


def test_no_neighbors_at_all_is_off(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    assert torch.equal(logits(retro, tokens, neighbors[:, :, :0]), logits(retro, tokens))


def test_the_first_tokens_are_those_of_the_baseline(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    """CCA is the identity for the first m - 1 tokens: no chunk is complete yet."""
    assert changed_positions(logits(retro, tokens), logits(retro, tokens, neighbors))[0] == M


def test_a_chunk_without_neighbors_gives_finite_gradients(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    lengths = torch.full((BATCH, CHUNKS, K), R)
    lengths[0, 1] = 0
    retro.loss(tokens, tokens, torch.ones_like(tokens).bool(), neighbors, lengths).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in retro.parameters())


def test_missing_neighbors_train_nothing_of_the_retrieval_part(
    retro: RetroModel, tokens: Tensor, neighbors: Tensor
) -> None:
    lengths = torch.zeros(BATCH, CHUNKS, K, dtype=torch.long)
    retro.loss(tokens, tokens, torch.ones_like(tokens).bool(), neighbors, lengths).backward()
    assert all(p.grad is not None and not p.grad.any() for _, p in retro.retrieval_parameters())


# The k neighbors of a chunk have no order, and an absent one leaves no trace.


def test_order_does_not_matter(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    """Peers' bug 2 (Norlund, PipeRAG): positions ran through the concatenated neighbors."""
    assert_same(logits(retro, tokens, neighbors.flip(2)), logits(retro, tokens, neighbors))


def test_a_missing_neighbor_is_as_if_never_asked_for(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    """Peers' bug 3 (Megatron) again: with k' < k found, the result is that of k' neighbors."""
    lengths = torch.tensor([R, 0]).expand(BATCH, CHUNKS, K)
    assert_same(logits(retro, tokens, neighbors, lengths), logits(retro, tokens, neighbors[:, :, :1]))


def test_padding_may_hold_anything(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    lengths = torch.randint(0, R + 1, (BATCH, CHUNKS, K), generator=torch.Generator().manual_seed(0))
    padding = torch.arange(R) >= lengths[..., None]
    expected = logits(retro, tokens, neighbors, lengths)
    for content in (-1, 0, VOCABULARY + 1000):
        assert torch.equal(logits(retro, tokens, neighbors.masked_fill(padding, content), lengths), expected)


def test_padding_is_as_if_cut_off(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    lengths = torch.full((BATCH, CHUNKS, K), 5)
    assert_same(logits(retro, tokens, neighbors, lengths), logits(retro, tokens, neighbors[..., :5]))


def test_full_lengths_are_no_lengths(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    lengths = torch.full((BATCH, CHUNKS, K), R)
    assert_same(logits(retro, tokens, neighbors, lengths), logits(retro, tokens, neighbors))


def test_integer_types_do_not_matter(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    lengths = torch.full((BATCH, CHUNKS, K), 3)
    small = logits(retro, tokens, neighbors.int(), lengths.to(torch.int16))
    assert torch.equal(small, logits(retro, tokens, neighbors, lengths))


def test_order_of_a_neighbors_tokens_matters(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    """Peers' bug 5 (Megatron with RoPE): the encoder had no positions, a shuffled neighbor read the same."""
    difference = logits(retro, tokens, neighbors.flip(3)) - logits(retro, tokens, neighbors)
    assert difference[:, M - 1 :].abs().amax(dim=(0, 2)).min() > 1e-3


# Sequences know nothing of each other.


def test_a_sequence_alone_gives_the_same_logits(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    """Peers' bug 7 (Megatron): beyond one encoder CA layer, neighbors of other sequences would mix in."""
    together = logits(retro, tokens, neighbors)
    for b in range(BATCH):
        alone = logits(retro, tokens[b : b + 1], neighbors[b : b + 1])
        assert_same(alone, together[b : b + 1])


def test_order_of_the_batch_does_not_matter(retro: RetroModel, tokens: Tensor, neighbors: Tensor) -> None:
    assert_same(logits(retro, tokens.flip(0), neighbors.flip(0)), logits(retro, tokens, neighbors).flip(0))
