"""Bugs of earlier implementations of RETRO, each planted in our model to show that a check of ours would catch it.

Every check holds for the model as it is, and fails once the bug is planted. The checks are what the tests of this
folder assert: equality with the slow model, causality, neighbors without order, retrieval off as the baseline.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_builders import VOCABULARY, random_tokens, small_choices, small_model, small_size
from naive_retro import NaiveRetro
from torch import Tensor

from retro_lab.model import attention
from retro_lab.model.attention import CrossAttention
from retro_lab.model.chunked_cross_attention import ChunkedCrossAttention
from retro_lab.model.config import ModelConfig
from retro_lab.model.distances import DistanceEncoder
from retro_lab.model.encoder import NeighborEncoder
from retro_lab.model.neighbors import RetrievedNeighbors
from retro_lab.model.retro import RetroModel
from retro_lab.model.rotary import Rotations

M, K, R, LENGTH = 4, 2, 8, 15
CHUNKS = LENGTH // M
SIZE = small_size(encoder_ca_layers=[1, 2])
TOKENS, NEIGHBORS = random_tokens(2, LENGTH), random_tokens(2, CHUNKS, K, R, seed=2)

Check = Callable[[ModelConfig], None]
Plant = Callable[[pytest.MonkeyPatch], None]


def logits(model: RetroModel, *inputs: Tensor | None) -> Tensor:
    with torch.no_grad():
        return model.logits(model(*inputs))


def close(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual, expected, rtol=1e-10, atol=1e-10)


# Checks.


def equals_the_slow_model(choices: ModelConfig) -> None:
    model = small_model(SIZE, choices)
    naive = NaiveRetro(dict(model.named_parameters()), SIZE, choices)
    with torch.no_grad():
        for tokens, neighbors, states in zip(TOKENS, NEIGHBORS, model(TOKENS, NEIGHBORS), strict=True):
            assert close(states, torch.stack(naive.hidden_states(tokens.tolist(), neighbors.tolist())))


def order_of_neighbors_does_not_matter(choices: ModelConfig) -> None:
    model = small_model(SIZE, choices)
    assert close(logits(model, TOKENS, NEIGHBORS.flip(2)), logits(model, TOKENS, NEIGHBORS))


def order_of_a_neighbors_tokens_matters(choices: ModelConfig) -> None:
    """Seen where positions in chunked cross-attention cannot make up for those that the encoder lacks."""
    choices.cca_positions, size = False, small_size(encoder_ca_layers=[])
    model = small_model(size, choices)
    assert not close(logits(model, TOKENS, NEIGHBORS.flip(3)), logits(model, TOKENS, NEIGHBORS))


def order_of_past_tokens_matters(choices: ModelConfig) -> None:
    """Seen by one layer of the decoder, which is too shallow to tell places by what a token could see."""
    model = small_model(small_size(layers=1, cca_layers=[]), choices)
    swapped = TOKENS[:, [1, 0, *range(2, LENGTH)]]
    assert not close(logits(model, swapped)[:, -1], logits(model, TOKENS)[:, -1])


def missing_neighbors_are_retrieval_off(choices: ModelConfig) -> None:
    model = small_model(SIZE, choices)
    missing = logits(model, TOKENS, torch.full_like(NEIGHBORS, -1), torch.zeros(2, CHUNKS, K, dtype=torch.long))
    assert torch.equal(missing, logits(model, TOKENS))


def prefixes_give_the_logits_of_the_whole(choices: ModelConfig) -> None:
    model = small_model(SIZE, choices)
    whole = logits(model, TOKENS, NEIGHBORS)
    for length in range(1, LENGTH):
        assert close(logits(model, TOKENS[:, :length], NEIGHBORS[:, : length // M]), whole[:, :length])


def sequences_know_nothing_of_each_other(choices: ModelConfig) -> None:
    model = small_model(SIZE, choices)
    alone = logits(model, TOKENS[:1], NEIGHBORS[:1])
    assert close(logits(model, TOKENS, NEIGHBORS)[:1], alone)


def neighbors_act_from_the_last_token_of_their_chunk_on(choices: ModelConfig) -> None:
    model = small_model(SIZE, choices)
    for u in range(1, CHUNKS + 1):
        changed = NEIGHBORS.clone()
        changed[:, u - 1] = (changed[:, u - 1] + 1) % VOCABULARY
        difference = logits(model, TOKENS, changed) - logits(model, TOKENS, NEIGHBORS)
        moved = (difference.abs() > 1e-10).any(dim=2).all(dim=0)
        assert moved.tolist() == [position >= u * M for position in range(1, LENGTH + 1)]


def heads_matter(choices: ModelConfig) -> None:
    """With H x A kept, no shape tells whether `heads` is used; what is computed does."""
    for one, two in (
        ({"heads": 1, "head_size": 12}, {"heads": 2, "head_size": 6}),
        ({"encoder_heads": 1, "encoder_head_size": 8}, {"encoder_heads": 2, "encoder_head_size": 4}),
    ):
        choices.positions = "rotary"  # whose parameters have the same shapes for any number of heads
        models = [small_model(small_size(**change), choices) for change in (one, two)]
        models[1].load_state_dict(models[0].state_dict())
        assert not close(logits(models[0], TOKENS, NEIGHBORS), logits(models[1], TOKENS, NEIGHBORS))


# Bugs. Each takes the place of one method of ours.


def replace(patch: pytest.MonkeyPatch, owner: type, name: str, changed: Callable[..., Any]) -> None:
    """Put `changed(original, self, ...)` in the place of a method."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *args, **keywords: changed(original, self, *args, **keywords))


def shifts_positions_twice(patch: pytest.MonkeyPatch) -> None:
    """1, lucidrains and those who copied it: queries of an attending chunk stand at [126, 0, ..., 0]."""

    def between(original: Any, self: DistanceEncoder, queries: int, keys: int, offset: int, like: Tensor) -> Any:
        distances = original(self, queries, keys, offset, like)
        if not offset:
            return distances
        shifted = original(self, 1, keys, 0, like).query.expand(-1, queries, -1).clone()
        shifted[:, 0] = distances.query[:, -1]
        return Rotations(shifted, distances.key)

    replace(patch, DistanceEncoder, "between", between)


def is_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """19, sliorde: d = i - i' + m in place of m - 1."""

    def between(original: Any, self: DistanceEncoder, queries: int, keys: int, offset: int, like: Tensor) -> Any:
        return original(self, queries, keys, offset + (offset > 0), like)

    replace(patch, DistanceEncoder, "between", between)


def counts_positions_through_all_neighbors(patch: pytest.MonkeyPatch) -> None:
    """2, Norlund and PipeRAG: k neighbors are one long neighbor of k r tokens."""

    def forward(original: Any, self: Any, hidden: Tensor, encoded: Tensor, distances: Any, **rest: Any) -> Any:
        one = encoded.flatten(2, 3).unsqueeze(2)
        heads, width = self.attention.heads, hidden.shape[-1]
        head_size = self.attention.output.in_features // heads
        positions = "rotary" if self.attention.positions is None else "transformer_xl"
        encoder = DistanceEncoder(ModelConfig(positions=positions), width, head_size)
        distances = encoder.between(M, one.shape[3], M - 1, hidden)
        return original(self, hidden, encoded=one, distances=distances, **rest)

    replace(patch, ChunkedCrossAttention, "forward", forward)


def reads_missing_neighbors(patch: pytest.MonkeyPatch) -> None:
    """3, Megatron: id -1 modulo the database is a real text, and nothing is masked."""

    def retrieved(original: Any, self: RetroModel, tokens: Tensor, neighbors: Tensor | None, _: Any, *rest: Any) -> Any:
        return original(self, tokens, None if neighbors is None else neighbors % VOCABULARY, None, *rest)

    replace(patch, RetroModel, "_retrieved", retrieved)


def attends_where_there_is_no_neighbor(patch: pytest.MonkeyPatch) -> None:
    """Of the matrix, lucidrains: a chunk without neighbors attends to something, and is not retrieval off."""

    def forward(original: Any, self: Any, hidden: Tensor, present: Tensor | None, **rest: Any) -> Any:
        everything = None if present is None else torch.ones_like(present)
        return original(self, hidden, present=everything, **rest)

    replace(patch, ChunkedCrossAttention, "forward", forward)


def gives_the_encoder_no_positions(patch: pytest.MonkeyPatch) -> None:
    """5, Megatron with rotary positions: the encoder is called without them."""

    def between(original: Any, self: DistanceEncoder, queries: int, keys: int, offset: int, like: Tensor) -> Any:
        distances = original(self, queries, keys, offset, like)
        if offset or queries == LENGTH:
            return distances
        still = (original(self, 1, 1, 0, like).query.expand(-1, tokens, -1) for tokens in (queries, keys))
        return Rotations(*still)

    replace(patch, DistanceEncoder, "between", between)


def aligns_chunks_to_the_right(patch: pytest.MonkeyPatch) -> None:
    """6, Megatron: if N is no multiple of m, the chunks that attend are counted from the end."""

    def forward(original: Any, self: Any, hidden: Tensor, **rest: Any) -> Tensor:
        ragged = hidden.shape[1] % M
        return F.pad(original(self, hidden[:, ragged:], **rest), (0, 0, ragged, 0))

    replace(patch, ChunkedCrossAttention, "forward", forward)


def mixes_the_batch_behind_the_first_encoder_cross_attention(patch: pytest.MonkeyPatch) -> None:
    """7, Megatron: the layout turns from [batch][k] to [k][batch], right only if P_enc = [1]."""
    calls = 0

    def forward(original: Any, self: Any, hidden: Tensor, **rest: Any) -> Tensor:
        nonlocal calls
        if hidden.shape[1] == K:  # neighbors are the queries
            calls += 1
            if calls % 2 == 0:
                hidden = hidden.transpose(0, 1).reshape(hidden.shape)
        return original(self, hidden, **rest)

    replace(patch, CrossAttention, "forward", forward)


def reads_the_chunk_without_its_norm(patch: pytest.MonkeyPatch) -> None:
    """9, Retro-li: normalizes a stream and goes on with what it was before."""

    def forward(original: Any, self: NeighborEncoder, *inputs: Any) -> Tensor:
        patch.setattr(self.chunk_norm, "forward", lambda states: states)
        return original(self, *inputs)

    replace(patch, NeighborEncoder, "forward", forward)


def runs_the_decoder_without_positions(patch: pytest.MonkeyPatch) -> None:
    """9, Retro-li: GPT-2 blocks without GPT-2's position embeddings."""

    def to_past(original: Any, self: DistanceEncoder, queries: int, keys: int, like: Tensor) -> Any:
        distances = original(self, queries, keys, like)
        if isinstance(distances, Rotations):
            return Rotations(*(rotation[:, :1].expand_as(rotation) for rotation in distances))
        return torch.zeros_like(distances)

    replace(patch, DistanceEncoder, "to_past", to_past)


def encodes_neighbors_before_the_decoder(patch: pytest.MonkeyPatch) -> None:
    """Issue 11 of lucidrains: the encoder is conditioned on embeddings, not on H after ATTN of layer min(P)."""

    def encode(original: Any, self: RetrievedNeighbors, hidden: Tensor) -> Tensor:
        return original(self, self._decoder_embedding(TOKENS))

    replace(patch, RetrievedNeighbors, "_encode", encode)


def ignores_heads(patch: pytest.MonkeyPatch) -> None:
    """11, lucidrains: `heads=` is accepted, and another number is used."""

    original = attention.split_heads
    patch.setattr(attention, "split_heads", lambda projected, heads, parts=1: original(projected, 2, parts))
    # With one head asked for, rotations fit the two that are used.
    replace(
        patch,
        DistanceEncoder,
        "__init__",
        lambda init, self, model, width, size: init(self, model, width, {12: 6, 8: 4}.get(size, size)),
    )


def does_not_bring_retrieval_to_the_model(patch: pytest.MonkeyPatch) -> None:
    """18, Mengzi: the same perplexity with any database."""
    replace(patch, ChunkedCrossAttention, "forward", lambda forward, self, hidden, **rest: torch.zeros_like(hidden))


def attends_one_token_early(patch: pytest.MonkeyPatch) -> None:
    """Issue 35 of lucidrains asks whether the shift is causal: chunk u read from its last token but one on is not."""

    def forward(original: Any, self: Any, hidden: Tensor, **rest: Any) -> Tensor:
        return original(self, hidden.roll(1, dims=1), **rest).roll(-1, dims=1)

    replace(patch, ChunkedCrossAttention, "forward", forward)


BOTH, ROTARY = ("transformer_xl", "rotary"), ("rotary",)
BUGS: list[tuple[Plant, Check, tuple[str, ...]]] = [
    (shifts_positions_twice, equals_the_slow_model, ROTARY),
    (is_off_by_one, equals_the_slow_model, BOTH),
    (counts_positions_through_all_neighbors, order_of_neighbors_does_not_matter, BOTH),
    (reads_missing_neighbors, missing_neighbors_are_retrieval_off, BOTH),
    (attends_where_there_is_no_neighbor, missing_neighbors_are_retrieval_off, BOTH),
    (gives_the_encoder_no_positions, order_of_a_neighbors_tokens_matters, ROTARY),
    (aligns_chunks_to_the_right, prefixes_give_the_logits_of_the_whole, BOTH),
    (mixes_the_batch_behind_the_first_encoder_cross_attention, sequences_know_nothing_of_each_other, BOTH),
    (reads_the_chunk_without_its_norm, equals_the_slow_model, BOTH),
    (runs_the_decoder_without_positions, order_of_past_tokens_matters, BOTH),
    (encodes_neighbors_before_the_decoder, equals_the_slow_model, BOTH),
    (ignores_heads, heads_matter, ROTARY),
    (does_not_bring_retrieval_to_the_model, neighbors_act_from_the_last_token_of_their_chunk_on, BOTH),
    (attends_one_token_early, neighbors_act_from_the_last_token_of_their_chunk_on, BOTH),
]


def cases() -> Iterator[Any]:
    """Each bug with its check and each kind of positions that it concerns."""
    for plant, check, kinds in BUGS:
        for positions in kinds:
            yield pytest.param(plant, check, positions, id=f"{plant.__name__}-{positions}")


@pytest.mark.parametrize(("plant", "check", "positions"), cases())
def test_a_bug_of_a_peer_is_not_ours_and_would_be_caught(
    plant: Plant, check: Check, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(small_choices(positions=positions))
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(small_choices(positions=positions))
