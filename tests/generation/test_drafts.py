"""Drafts: what is proposed, and that a text is the same with them."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_lab.generation.decoder import Decoder, Writing
from retro_lab.generation.drafts import LONGEST, SHORTEST, Drafter
from retro_lab.generation.retrieved import Found
from retro_lab.generation.sampling import Sampling
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel

M, R, VOCABULARY = 8, 16, 12

FEW_TOKENS = st.lists(st.integers(0, 3), max_size=40)


def drafter(*neighbors: list[int], own_text: bool = False) -> Drafter:
    """Return a drafter of a text that has retrieved these neighbors, each at a chunk of its own."""
    made = Drafter(own_text=own_text)
    for neighbor in neighbors:
        made.add([neighbor])
    return made


def test_what_follows_the_last_tokens_in_a_neighbor_is_proposed() -> None:
    neighbor = list(range(1, 20))
    assert list(drafter(neighbor).propose([0, 3, 4], 20)) == [5, 6, 7, 8]
    assert list(drafter(neighbor).propose([2, 3, 4], 20)) == [5, 6, 7, 8, 9, 10, 11]  # a longer match says more
    assert list(drafter(neighbor).propose([2, 3, 4], 1)) == [5]
    assert list(drafter(neighbor).propose([0, 3, 4], 1)) == []  # one token would not pay
    assert list(drafter(neighbor).propose([2, 3, 4], 0)) == []
    assert list(drafter(neighbor).propose([0, 0, 4], 8)) == []  # one token alone says too little
    assert list(drafter(neighbor).propose([17, 18, 19], 8)) == []  # nothing follows
    assert list(drafter(neighbor).propose([4], 8)) == list(drafter(neighbor).propose([], 8)) == []


def test_the_longest_match_counts_and_then_the_newest_neighbor_and_the_nearest() -> None:
    assert list(drafter([1, 2, 3, 4], [9, 2, 3, 5]).propose([1, 2, 3], 1)) == [4]
    assert list(drafter([1, 2, 3, 4], [1, 2, 3, 5]).propose([1, 2, 3], 1)) == [5]
    both = Drafter()
    both.add([[1, 2, 3, 4], [1, 2, 3, 5]])
    assert list(both.propose([1, 2, 3], 1)) == [4]


def test_the_own_text_comes_after_neighbors_and_may_repeat_itself() -> None:
    text = [1, 2, 3, 7, 1, 2, 3]
    assert list(drafter([1, 2, 3, 4], own_text=True).propose(text, 1)) == [4]
    assert list(drafter([9, 2, 3, 4], own_text=True).propose(text, 1)) == [7]
    assert list(drafter([9, 2, 3, 4, 5]).propose(text, 2)) == [4, 5]
    assert list(drafter(own_text=True).propose([5] * 9, 6)) == [5] * 6
    assert list(drafter(own_text=True).propose([5, 6] * 5, 5)) == [5, 6, 5, 6, 5]


def test_proposals_that_came_true_make_later_ones_longer_and_false_ones_end_them() -> None:
    neighbor = list(range(50))
    made = drafter(neighbor)
    lengths = []
    for _ in range(4):
        proposed = made.propose([99, 10, 11], 40)
        lengths.append(len(proposed))
        made.judge(len(proposed))
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0] > 0
    made = drafter(neighbor)
    for _ in range(20):
        if made.propose([99, 10, 11], 40):
            made.judge(0)
    assert not made.propose([99, 10, 11], 40)
    assert made.propose([9, 10, 11], 40)  # longer matches have not failed


@given(FEW_TOKENS, FEW_TOKENS, FEW_TOKENS, st.integers(0, 12), st.booleans())
def test_proposals_continue_a_match(first: list[int], second: list[int], text: list[int], most: int, own: bool) -> None:
    """Also when the text grows between calls: what it is known to hold must not lag behind."""
    made = drafter(first, second, own_text=own)
    for end in range(len(text) + 1):
        tokens = text[:end]
        proposed = list(made.propose(tokens, most))
        made.judge(len(proposed) // 2)
        assert len(proposed) <= most
        if proposed:
            last = tuple(tokens[-SHORTEST:])
            known = [first, second, *([tokens + proposed] if own else [])]
            spans = [(source[place - SHORTEST : place], source[place:]) for source in known
                     for place in range(SHORTEST, len(source))]  # fmt: skip
            assert any(tuple(before) == last and after[: len(proposed)] == proposed for before, after in spans)
            assert len(last) <= LONGEST


def repetitive(chunks: list[np.ndarray]) -> list[Found]:
    """Neighbors out of a few pieces, so that texts and neighbors have much in common."""
    found = []
    for chunk in chunks:
        draw = np.random.default_rng(chunk)
        tokens = np.stack([np.resize(np.roll(chunk, draw.integers(M)), R) for _ in range(2)])
        found.append(Found(np.zeros(2, int), np.zeros(2, np.float32), tokens, draw.choice([0, 5, R], 2)))
    return found


class Text(Writing):
    """A text of a certain length."""

    most: int

    def ends(self) -> bool:
        return len(self.tokens) >= self.most


def write(model, prompt, count, sampling, number=0, *, drafts=True, retrieve=repetitive, draws=None) -> Writing:
    """Write a text alone."""
    draws = sampling.draws(number) if draws is None else draws
    text = Text(list(prompt), draws, Drafter() if drafts else None)
    text.most = len(prompt) + count
    Decoder(model, sampling, retrieve, length=64).write([text])
    return text


def random_model(seed: int, dtype: torch.dtype, positions: str) -> RetroModel:
    """A model that likes to repeat itself, as it is tied and wide in its weights."""
    torch.manual_seed(seed)
    size = SizeConfig(
        name="tiny", width=16, ffw_width=16, heads=2, head_size=8, layers=2, cca_layers=[2], encoder_width=16,
        encoder_ffw_width=16, encoder_heads=2, encoder_head_size=8, encoder_layers=1,
    )  # fmt: skip
    config = ModelConfig(chunk_length=M, init_std=1.0, positions=positions)
    return RetroModel(size, config, VOCABULARY).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_p=0.95, seed=3)], ids=["greedy", "drawn"])
def test_a_text_is_the_same_with_drafts(sampling: Sampling, dtype: torch.dtype) -> None:
    """Sums of the last bits could decide between equally likely tokens, which these models do not have."""
    accepted = proposed = 0
    for seed in range(4):
        model = random_model(seed, dtype, ("transformer_xl", "rotary")[seed % 2])
        prompt = [0, *np.random.default_rng(seed).integers(1, VOCABULARY, 3 + seed)]
        plain, drafted = (write(model, prompt, 30, sampling, seed, drafts=drafts) for drafts in (False, True))
        assert drafted.tokens == plain.tokens
        proposed, accepted = proposed + drafted.proposed, accepted + drafted.accepted
    assert 0 < accepted < proposed


class Chain(torch.nn.Module):
    """A model whose next token depends on the last one alone, with the probabilities of a table [V, V]."""

    chunk_length = M

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.logs = torch.nn.Parameter(torch.from_numpy(table).log())

    def empty_cache(self, **_):
        return Length()

    def forward(self, tokens, *_, cache, **__):
        cache.length += tokens.shape[1]
        return torch.nn.functional.one_hot(tokens, len(self.logs)).double()

    def logits(self, hidden):
        return self.logs[hidden.argmax(-1)]


class Length:
    """What such a model remembers."""

    length = 0

    def truncate(self, length: int) -> None:
        self.length = length


class Given:
    """Draws that are given, each of which may be asked for once."""

    def __init__(self, numbers: tuple[float, ...]) -> None:
        self.random = iter(numbers).__next__


SHARES = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(sorted).map(lambda cuts: np.diff([0, *cuts, 4]))
"""Probabilities of three tokens, in quarters."""


@given(st.tuples(SHARES, SHARES, SHARES), st.lists(st.integers(0, 2), min_size=4, max_size=7))
@settings(max_examples=8, deadline=None)
def test_drawn_texts_have_exactly_the_probabilities_of_the_model(rows: tuple[np.ndarray, ...], prompt) -> None:
    """All draws that can come are tried: four for each of three tokens, all equally likely."""
    table = np.stack(rows) / 4
    texts = Counter()
    for quarters in product(range(4), repeat=3):
        draws = Given(tuple((quarter + 0.5) / 4 for quarter in quarters))
        text = write(Chain(table), prompt * 2, 3, Sampling(1.0), draws=draws, retrieve=None)
        texts[tuple(text.tokens[-3:])] += 1
    for tokens in product(range(3), repeat=3):
        pairs = zip((prompt[-1], *tokens), tokens, strict=False)
        assert texts[tokens] == round(4**3 * np.prod([table[pair] for pair in pairs]))


def test_drawn_texts_are_distributed_as_the_model_says() -> None:
    """The first three tokens of 150 texts, against the probabilities from whole passes; 3 tokens may come each time."""
    model, sampling, count = random_model(5, torch.float64, "transformer_xl"), Sampling(1.5, top_k=3, seed=1), 150
    prompt, texts, accepted = [0, 1, 2, 1, 2, 1, 2], Counter(), 0
    for number in range(count):
        text = write(model, prompt, 3, sampling, number)
        texts[tuple(text.tokens[len(prompt) :])] += 1
        accepted += text.accepted
    expected = {(): float(count)}
    for _ in range(3):
        expected = {
            (*tokens, token): share * probability
            for tokens, share in expected.items()
            for token, probability in enumerate(next_probabilities(model, prompt + list(tokens), sampling))
            if probability
        }
    assert accepted > 10
    assert set(texts) <= set(expected)
    statistic = sum((texts[tokens] - share) ** 2 / share for tokens, share in expected.items())
    assert statistic < len(expected) + 3 * np.sqrt(2 * len(expected))  # three standard deviations


@torch.no_grad()
def next_probabilities(model: RetroModel, tokens: list[int], sampling: Sampling) -> list[float]:
    """Probabilities of the tokens that may follow, from one pass over all."""
    ids = torch.tensor([tokens])
    found = repetitive(list(ids[0, : len(tokens) // M * M].view(-1, M).numpy()))
    neighbors = lengths = None
    if found:
        neighbors, lengths = (torch.from_numpy(np.stack(part))[None] for part in list(zip(*found, strict=True))[2:])
    hidden = model(ids, neighbors, lengths)
    return sampling.probabilities(model.logits(hidden[:, -1]))[0].tolist()
