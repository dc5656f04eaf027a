"""Prompts become texts, with live retrieval from a database of real stages."""

import numpy as np
import pytest
import torch
from pipeline import CHUNK_LENGTH, SMALL_SIZE, bm25_database, build_chunks

from retro_lab.errors import ConfigurationError
from retro_lab.generation.generator import Finish, GenerationInterrupted, Generator
from retro_lab.generation.sampling import Sampling
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.neighbors import NO_NEIGHBOR

LENGTH, K = 6 * CHUNK_LENGTH, 2


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("generator"), tiny_bert)


@pytest.fixture(scope="module")
def tokenizer(chunks):
    return chunks.stores["train"].tokenizer


@pytest.fixture(scope="module")
def live(chunks):
    return bm25_database(chunks, K).live(K)


def build(vocabulary, cca_layers, dtype=torch.float64):
    torch.manual_seed(0)
    size = SizeConfig(**vars(SMALL_SIZE) | {"cca_layers": cca_layers})
    return RetroModel(size, ModelConfig(chunk_length=CHUNK_LENGTH, init_std=0.3), vocabulary).to(dtype).eval()


@pytest.fixture(scope="module")
def model(tokenizer):
    """A RETRO whose neighbors matter."""
    return build(tokenizer.vocabulary_size, [1, 2])


@pytest.fixture(scope="module")
def generator(model, tokenizer, live):
    def generator(k=K, model=model, batch_size=3):
        found = live if k else None
        return Generator(
            model, tokenizer, live=found, value=Value.neighbor_and_continuation, k=k, length=LENGTH,
            batch_size=batch_size,
        )  # fmt: skip

    return generator


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return tokenizer.encode(["", "the frozen", "encoder embeds chunks and finds neighbors in a database", "of many"])


@torch.no_grad()
def loop(model, live, prompt, count, k, marker):
    """The likeliest next token again and again, from a pass over the whole text."""
    text = prompt.astype(np.int64)
    while len(text) < len(prompt) + count:
        neighbors = lengths = None
        complete = text[: len(text) // CHUNK_LENGTH * CHUNK_LENGTH].reshape(-1, CHUNK_LENGTH)
        if k and len(complete):
            read, real = live.read(live.search(list(complete))[0], k, Value.neighbor_and_continuation)
            neighbors, lengths = torch.from_numpy(read.astype(np.int64))[None], torch.from_numpy(real)[None]
        token = int(model.logits(model(torch.from_numpy(text)[None], neighbors, lengths))[0, -1].argmax())
        if token == marker:
            break
        text = np.append(text, token)
    return text[len(prompt) :]


@pytest.mark.parametrize("k", [0, 1, K])
def test_texts_are_those_of_a_loop_over_whole_passes(model, live, tokenizer, generator, prompts, k):
    found = generator(k).generate(prompts, max_tokens=2 * CHUNK_LENGTH + 3)
    for prompt, written in zip(prompts, found, strict=True):
        expected = loop(model, live, prompt, 2 * CHUNK_LENGTH + 3, k, tokenizer.document_marker)
        np.testing.assert_array_equal(written.tokens, expected)
        np.testing.assert_array_equal(written.prompt, prompt)
        assert written.text == tokenizer.decode([expected])[0]
        assert written.finish == (Finish.length if len(expected) == 2 * CHUNK_LENGTH + 3 else Finish.end)
        whole = np.concatenate([prompt, expected])
        assert [chunk.stop for chunk in written.chunks] == [
            stop for stop in range(CHUNK_LENGTH, len(whole), CHUNK_LENGTH) if k
        ]
        for chunk in written.chunks:
            ids, distances = live.search([whole[chunk.start : chunk.stop]])
            np.testing.assert_array_equal(chunk.found.ids, ids[0, :k])
            np.testing.assert_array_equal(chunk.found.distances, distances[0, :k])


def test_what_is_retrieved_decides_the_text(generator, prompts):
    texts = [[text.text for text in generator(k).generate(prompts, max_tokens=25)] for k in (0, 1, K)]
    assert texts[0] != texts[1] != texts[2]


def test_without_retrieval_it_is_a_baseline(model, tokenizer, generator, prompts):
    """Whose weights are those of the decoder."""
    twin = build(tokenizer.vocabulary_size, [])
    weights = model.state_dict()
    twin.load_state_dict({name: weights[name] for name in twin.state_dict()})
    own, other = (generator(0, each).generate(prompts, max_tokens=20) for each in (model, twin))
    assert [text.text for text in own] == [text.text for text in other]


def test_neighbors_can_be_given(model, live, tokenizer, generator, prompts):
    """Every chunk retrieves them, in place of a search or without one."""
    texts = ["tokens of many", "database " * 40]
    found = generator(0).generate(prompts, max_tokens=12, neighbors=texts)
    for written in found:
        for chunk in written.chunks:
            assert chunk.found.ids.tolist() == [NO_NEIGHBOR] * 2
            first, second = tokenizer.encode(texts)
            assert chunk.found.tokens[0, : chunk.found.lengths[0]].tolist() == first[1:].tolist()
            assert chunk.found.tokens[1].tolist() == second[1 : 1 + 2 * CHUNK_LENGTH].tolist()
    assert any(written.chunks for written in found)
    instead = generator().generate(prompts, max_tokens=12, neighbors=texts)
    assert [written.text for written in found] == [written.text for written in instead]
    assert [text.text for text in found] != [text.text for text in generator(0).generate(prompts, max_tokens=12)]


class Readable(Sampling):
    """Draws tokens of ASCII text alone, as a trained model does."""

    def choose(self, logits, draws):
        return super().choose(logits.masked_fill(~self.readable, -torch.inf), draws)


@pytest.fixture(scope="module")
def readable(tokenizer):
    texts = tokenizer.decode([np.array([token]) for token in range(tokenizer.vocabulary_size)])
    sampling = Readable(1.0, seed=1)
    object.__setattr__(sampling, "readable", torch.tensor([text.isascii() and text.isprintable() for text in texts]))
    sampling.readable[tokenizer.document_marker] = False
    return sampling


def test_a_stop_string_ends_a_text_before_it(generator, prompts, readable):
    """Wherever it begins in a token, and however many it spans."""

    def write(count, *stop):
        [written] = generator().generate(prompts[2:3], max_tokens=count, sampling=readable, stop=stop)
        return written

    whole = write(14)
    assert len(whole.text) > len(whole.tokens) == 14
    for start, size in ((0, 1), (0, 4), (3, 2), (6, 5), (8, 1), (9, 3)):
        stop = whole.text[start : start + size]
        cut = write(14, "never in it ☃", stop)
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finish == Finish.stop
        assert whole.tokens[: len(cut.tokens)].tolist() == cut.tokens.tolist()
        assert stop not in write(len(cut.tokens) - 1).text
    assert write(14, "never in it ☃").text == whole.text


def test_the_prompt_is_not_searched_for_stop_strings(generator, prompts):
    [whole, cut] = (generator().generate(prompts[1:2], max_tokens=4, stop=stop)[0] for stop in ([], ["the frozen"]))
    assert whole.text == cut.text


def test_draws_depend_on_the_seed_and_the_number_of_a_text(generator, prompts):
    def write(seed, prompts=prompts, **options):
        found = generator(**options).generate(prompts, max_tokens=15, sampling=Sampling(1.0, top_p=0.95, seed=seed))
        return [written.text for written in found]

    assert write(0) == write(0) == write(0, batch_size=1) == write(0, batch_size=4)
    assert write(0) != write(1)
    assert len(set(write(0, [prompts[1]] * 3))) == 3


def test_no_token_is_asked_for(generator, prompts):
    found = generator().generate(prompts, max_tokens=0)
    assert [(written.text, written.finish, len(written.tokens)) for written in found] == [("", Finish.length, 0)] * 4
    assert generator().generate([], max_tokens=5) == []


def test_what_was_written_before_an_interruption_is_kept(model, tokenizer, live, generator, prompts):
    whole = generator().generate(prompts, max_tokens=20)
    left = iter(range(9))

    class Interrupting(Sampling):
        def choose(self, logits, draws):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return super().choose(logits, draws)

    with pytest.raises(GenerationInterrupted) as caught:
        generator().generate(prompts, max_tokens=20, sampling=Interrupting())
    for part, text in zip(caught.value.generated, whole, strict=True):
        assert part.finish == (Finish.interrupted if len(part.tokens) < len(text.tokens) else text.finish)
        assert text.tokens[: len(part.tokens)].tolist() == part.tokens.tolist()
        assert text.text.startswith(part.text.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert 0 < sum(len(part.tokens) for part in caught.value.generated) < sum(len(text.tokens) for text in whole)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_tokens": -1}, "max_tokens must be 0 or more, not -1."),
        ({"stop": [""]}, "stop is a list of strings, none of which is empty."),
        ({"stop": "end"}, "stop is a list of strings"),
        ({"retrieve_every": 0}, "retrieve_every must be from 1 to 8, the tokens of a chunk, not 0."),
        ({"retrieve_every": 9}, "retrieve_every must be from 1 to 8"),
        ({"neighbors": []}, "neighbors has no text"),
        ({"neighbors": ["a", ""]}, "neighbors has no text"),
    ],
)
def test_what_cannot_be_asked_is_refused(generator, prompts, settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        generator().generate(prompts, **{"max_tokens": 3} | settings)


def test_a_baseline_takes_no_neighbors(generator, tokenizer, prompts):
    baseline = build(tokenizer.vocabulary_size, [])
    with pytest.raises(ConfigurationError, match="A baseline has no chunked cross-attention"):
        generator(K, baseline)
    with pytest.raises(ConfigurationError, match="leave out neighbors or take a RETRO"):
        generator(0, baseline).generate(prompts, max_tokens=3, neighbors=["a"])
