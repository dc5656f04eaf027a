"""Texts are those of a loop over whole forward passes, whatever they are written together with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bases import retrofitted, tiny_base

from retro_lab.generation.decoder import Decoder, Writing
from retro_lab.generation.retrieved import Found
from retro_lab.generation.sampling import Sampling
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel

M, K, R, VOCABULARY, LENGTH = 4, 2, 8, 40, 16
SIZE = SizeConfig(
    name="small", width=16, ffw_width=32, heads=2, head_size=8, layers=3, cca_layers=[2, 3], encoder_width=16,
    encoder_ffw_width=32, encoder_heads=2, encoder_head_size=8, encoder_layers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def models():
    built = {}
    for positions in ("transformer_xl", "rotary"):
        for masks in (False, True):
            torch.manual_seed(0)
            config = ModelConfig(chunk_length=M, document_masks=masks, init_std=0.5, positions=positions)
            built[positions, masks] = RetroModel(SIZE, config, VOCABULARY).double().eval()
    return built


@pytest.fixture(scope="module")
def model(models):
    return models["transformer_xl", False]


def retrieve(chunks):
    """Neighbors that depend on the chunk alone; some are shorter, and some are missing."""
    found = []
    for chunk in chunks:
        assert len(chunk) == M
        draw = np.random.default_rng(chunk)
        lengths = draw.choice([0, R // 2, R], K)
        found.append(Found(draw.integers(0, 99, K), np.zeros(K), draw.integers(0, VOCABULARY, (K, R)), lengths))
    return found


class Recorded(Sampling):
    """Keeps the logits that tokens were chosen from, by text."""

    def choose(self, logits, draws):
        for row, one in zip(logits, draws, strict=True):
            one.logits = [*getattr(one, "logits", []), row]
        return super().choose(logits, draws)


class Draws:
    def __init__(self, sampling, number):
        self.random, self.logits = sampling.draws(number).random, []


class Text(Writing):
    """A text that ends when `stop` says so."""

    def __init__(self, prompt, draws, stop, **given):
        super().__init__(list(prompt), draws, **given)
        self.stop = stop

    def ends(self):
        return self.stop(self.tokens)


def write(model, prompts, count, sampling=None, retrieve=retrieve, numbers=None, drafters=None, **options):
    """Write `count` tokens after each prompt."""
    sampling = sampling or Recorded()
    texts = [
        Text(prompt, Draws(sampling, number), lambda tokens, prompt=prompt: len(tokens) == len(prompt) + count)
        for number, prompt in zip(numbers or range(len(prompts)), prompts, strict=True)
    ]
    for text, drafter in zip(texts, drafters or (), strict=False):
        text.drafter = drafter
    Decoder(model, sampling, retrieve, **{"length": LENGTH} | options).write(texts)
    return texts


@torch.no_grad()
def whole_pass(model, tokens, retrieve):
    """The logits after a sequence, from one pass over all of it."""
    ids = torch.tensor([tokens])
    chunks = ids[0, : len(tokens) // M * M].view(-1, M).numpy()
    neighbors = lengths = None
    if retrieve is not None and len(chunks):
        found = retrieve(chunks)
        neighbors, lengths = (torch.from_numpy(np.stack(part))[None] for part in list(zip(*found, strict=True))[2:])
    documents = torch.zeros_like(ids) if model.document_masks else None
    return model.logits(model(ids, neighbors, lengths, documents))[0, -1]


def sequence_starts(prompt, count, length=LENGTH):
    """Where the sequence begins that each token is predicted from: half of a full one stays."""
    start = 0
    while prompt - start > length:
        start += M
    for size in range(prompt, prompt + count):
        if size - start > length:
            start += max(M, (size - start - length // 2) // M * M)
        yield start


PROMPTS = [[0], [0, 5, 6], [0, 7, 8, 9], [0, *range(10, 21)], [0, *range(1, 24)]]


@pytest.mark.parametrize("retrieve", [None, retrieve])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
def test_each_token_is_chosen_from_the_logits_of_a_whole_pass(models, positions, masks, retrieve):
    """With prompts of unequal length, and texts that are longer than a sequence."""
    model, count = models[positions, masks], 14
    for prompt, text in zip(PROMPTS, write(model, PROMPTS, count, retrieve=retrieve), strict=True):
        assert len(text.draws.logits) == count
        for place, start in enumerate(sequence_starts(len(prompt), count)):
            before = text.tokens[start : len(prompt) + place]
            torch.testing.assert_close(
                text.draws.logits[place], whole_pass(model, before, retrieve), rtol=0, atol=1e-10
            )
            assert text.tokens[len(prompt) + place] == int(text.draws.logits[place].argmax())


@pytest.fixture(scope="module", params=["gemma3_text", "gpt2", "gpt_neox", "llama"])
def retrofit(request):
    """RETROfits of learned, rotary and sliding positions, and of parallel residuals."""
    return retrofitted(tiny_base(request.param, torch.float64), opened=True)


def test_a_retrofit_writes_from_the_logits_of_whole_passes(retrofit):
    """With prompts of unequal length, sequences that move, and drafts, some of which are wrong."""
    count = 14
    plain = write(retrofit, PROMPTS, count)
    for prompt, text in zip(PROMPTS, plain, strict=True):
        for place, start in enumerate(sequence_starts(len(prompt), count)):
            before = text.tokens[start : len(prompt) + place]
            torch.testing.assert_close(
                text.draws.logits[place], whole_pass(retrofit, before, retrieve), rtol=0, atol=1e-10
            )
    texts = [text.tokens for text in plain]
    drafted = write(retrofit, PROMPTS, count, drafters=[Prophet(text, 0.3) for text in texts])
    assert [text.tokens for text in drafted] == texts
    assert sum(text.accepted for text in drafted) > 0
    assert texts != [text.tokens for text in write(retrofit, PROMPTS, count, retrieve=None)]


def test_windows_of_a_retrofit_do_not_depend_on_batch_or_drafts(retrofit):
    plain = write(retrofit, PROMPTS, 14, retrieve_every=2)
    texts = [text.tokens for text in plain]
    drafted = write(retrofit, PROMPTS, 14, retrieve_every=2, drafters=[Prophet(text, 0.3) for text in texts])
    for number, (prompt, text, other) in enumerate(zip(PROMPTS, plain, drafted, strict=True)):
        [alone] = write(retrofit, [prompt], 14, retrieve_every=2, numbers=[number])
        assert alone.tokens == text.tokens == other.tokens
        assert alone.found.keys() == text.found.keys() == other.found.keys()
        for one, two in zip(alone.draws.logits, text.draws.logits, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-10)
    assert any(end % M for text in plain for end in text.found), "windows within chunks retrieved"


@given(st.lists(st.lists(st.integers(1, VOCABULARY - 1), max_size=20), min_size=2, max_size=4), st.integers(0, 3))
@settings(max_examples=5, deadline=None)
def test_a_text_does_not_depend_on_its_batch(model, prompts, seed):
    prompts, sampling = [[0, *prompt] for prompt in prompts], Sampling(1.5, top_k=20, top_p=0.9, seed=seed)
    lengths = [len(prompt) + 5 + 3 * number for number, prompt in enumerate(prompts)]

    def run(numbers):
        texts = [
            Text(prompts[number], sampling.draws(number), lambda tokens, most=lengths[number]: len(tokens) == most)
            for number in numbers
        ]
        Decoder(model, sampling, retrieve, length=LENGTH).write(texts)
        return [text.tokens for text in texts]

    assert run(range(len(prompts))) == [run([number])[0] for number in range(len(prompts))]


class Prophet:
    """Proposes what comes, right or wrong as it was told."""

    def __init__(self, text, mistakes=0.0, all_of_it=False):
        self.text, self.mistakes, self.all_of_it = text, mistakes, all_of_it
        self.draw, self.neighbors, self.proposed = np.random.default_rng(len(text)), [], []

    def add(self, neighbors):
        self.neighbors += neighbors

    def propose(self, tokens, most):
        assert most >= 1
        assert self.text[: len(tokens)] == tokens
        count = most if self.all_of_it else self.draw.integers(0, most + 1)
        guess = np.array(self.text[len(tokens) :][:count], int)
        wrong = self.draw.random(len(guess)) < self.mistakes
        self.proposed = np.where(wrong, (guess + 1) % VOCABULARY, guess).tolist()
        return self.proposed

    def judge(self, accepted):
        assert 0 <= accepted <= len(self.proposed)
        assert len(self.proposed) > 0
        assert self.mistakes > 0 or accepted == len(self.proposed)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=4)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("mistakes", [0.0, 0.3, 1.0])
def test_drafts_change_no_text(model, sampling, mistakes):
    """Neither a greedy nor a drawn one, alone or together."""
    plain = write(model, PROMPTS, 20, sampling)
    texts = [text.tokens for text in plain]
    together = write(model, PROMPTS, 20, sampling, drafters=[Prophet(text, mistakes) for text in texts])
    assert [text.tokens for text in together] == texts
    assert all(text.accepted <= text.proposed for text in together)
    [alone] = write(model, PROMPTS[3:4], 20, sampling, numbers=[3], drafters=[Prophet(texts[3], mistakes)])
    assert alone.tokens == texts[3]
    assert alone.proposed > 0
    assert alone.accepted == {0.0: alone.proposed, 1.0: 0}.get(mistakes, alone.accepted)
    assert alone.drafter.neighbors == [
        row[:length].tolist()
        for found in alone.found.values()
        for row, length in zip(found.tokens, found.lengths, strict=True)
        if length
    ]
    assert [text.found.keys() for text in together] == [text.found.keys() for text in plain]
    for one, other in zip(plain, together, strict=True):
        for place, found in one.found.items():
            assert all(np.array_equal(*pair) for pair in zip(found, other.found[place], strict=True))


@pytest.mark.parametrize("every", [1, 2, 3])
def test_windows_depend_neither_on_the_batch_nor_on_drafts(model, every):
    together, accepted = write(model, PROMPTS, 12, retrieve_every=every), 0
    for number, (prompt, text) in enumerate(zip(PROMPTS, together, strict=True)):
        drafters = [Prophet(text.tokens, 0.2)]
        [alone] = write(model, [prompt], 12, numbers=[number], drafters=drafters, retrieve_every=every)
        assert alone.tokens == text.tokens
        assert alone.found.keys() == text.found.keys()
        accepted += alone.accepted
    assert accepted > 0


def test_drafts_save_passes(model):
    calls = []
    hook = model.register_forward_pre_hook(lambda _, __, given: calls.append(given), with_kwargs=True)
    texts = [text.tokens for text in write(model, PROMPTS[1:2], 12, length=32)]
    alone = len(calls)
    [text] = write(model, PROMPTS[1:2], 12, length=32, drafters=[Prophet(texts[0], all_of_it=True)])
    hook.remove()
    assert text.tokens == texts[0]
    # A pass for the prompt and the first token of its chunk, and one for each chunk after it.
    assert len(calls) - alone == 4 * alone / 12
    assert text.proposed == text.accepted == 9


def test_texts_that_are_written_together_have_no_drafts(model):
    """The last of them that is left has; and it knows what was retrieved before."""
    plain = write(model, PROMPTS[1:3], 12)
    texts = [Text(prompt, None, lambda tokens, most=most: len(tokens) == most)
             for prompt, most in zip(PROMPTS[1:3], (6, 16), strict=True)]  # fmt: skip
    for text, known in zip(texts, plain, strict=True):
        text.drafter = Prophet(known.tokens, all_of_it=True)
    first, left = texts
    Decoder(model, Sampling(), retrieve, length=LENGTH).write(texts)
    assert (first.tokens, left.tokens) == (plain[0].tokens[:6], plain[1].tokens)
    assert (first.proposed, left.accepted) == (0, left.proposed)
    assert left.proposed > 0


def test_all_searches_of_a_step_are_one(model):
    asked = []

    def counted(chunks):
        asked.append(len(chunks))
        return retrieve(chunks)

    write(model, [[0, 1, 2], [0, 3, 4], [0, 5, 6]], 11, retrieve=counted)
    assert asked == [3, 3, 3]


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_a_window_retrieves_within_a_chunk(model, every):
    """Its m tokens, wherever in a chunk it ends; and each window is searched for once."""
    [text] = write(model, PROMPTS[1:2], 20, retrieve_every=every)
    starts = list(sequence_starts(3, 20))
    due = [end for end in range(M, 23) if end % M == 0 or end % M % every == 0]
    read = [end for end in due if end - M >= starts[min(end - 3, 19)]]
    assert set(read) <= set(text.found)
    assert set(text.found) <= set(due)
    for end, found in text.found.items():
        assert np.array_equal(found.tokens, retrieve([np.array(text.tokens[end - M : end])])[0].tokens)
    [plain] = write(model, PROMPTS[1:2], 20)
    assert (text.tokens == plain.tokens) == (every == M)


def test_a_text_ends_when_it_is_told_to(model):
    texts = [Text(prompt, None, lambda tokens: len(tokens) % 5 == 0) for prompt in PROMPTS]
    Decoder(model, Sampling(), retrieve, length=LENGTH).write(texts)
    assert all(text.ended for text in texts)
    assert [len(text.tokens) for text in texts] == [5, 5, 5, 15, 25]
    ended = [Text(prompt, None, None, ended=True) for prompt in PROMPTS]
    Decoder(model, Sampling(), retrieve, length=LENGTH).write(ended)
    assert [text.tokens for text in ended] == PROMPTS


def test_passes_go_on_until_all_ranks_have_ended(model):
    """Each rank calls a sharded model as often as the others."""
    said, calls = [], []
    hook = model.register_forward_hook(lambda *_: calls.append(1))

    def goes_on(here):
        said.append(here)
        return len(said) <= 9

    texts = write(model, PROMPTS[:2], 3, retrieve=None, goes_on=goes_on)
    hook.remove()
    assert said == [True] * 3 + [False] * 7
    assert [len(text.tokens) for text in texts] == [4, 6]
