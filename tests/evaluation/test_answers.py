"""Answers: how they are compared, and how they are decoded."""

import numpy as np
import pytest
import torch
from torch import Tensor

from retro_lab.corpus.questions import Passage, Question
from retro_lab.corpus.tokenizer import ByteBPE, DocumentTokenizer
from retro_lab.evaluation.answers import (
    NO_TOKEN,
    QuestionBatches,
    answer_text,
    greedy_answers,
    is_exact_match,
    line_ends,
    normalized,
)
from retro_lab.evaluation.intervals import share_interval
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel
from retro_lab.retrieval.questions import Questions
from retro_lab.retrieval.sequences import to_int64

M, K = 16, 2


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The  Beatles!", "beatles"),
        ("a man, a plan", "man plan"),
        ("An apple", "apple"),
        ("theatre", "theatre"),  # articles are whole words
        ("U.S.A.", "usa"),  # which leaves no article behind
        ("the-best", "thebest"),  # punctuation goes first
        (" 14 December 1972 UTC\t", "14 december 1972 utc"),
        ("Beyoncé’s", "beyoncé’s"),  # only ASCII punctuation
        ("the", ""),
    ],
)
def test_answers_are_normalized_as_by_squad(answer: str, normal: str) -> None:
    assert normalized(answer) == normal


def test_any_right_answer_counts() -> None:
    assert is_exact_match("the 14th of December", ["1972", "14th of december."])
    assert not is_exact_match("14th December", ["1972", "14th of december."])
    assert not is_exact_match("", ["1972"])


def test_the_interval_of_a_share() -> None:
    """Against the normal approximation, which is near for many questions."""
    right = np.arange(3600) % 10 < 4
    interval = share_interval(right)
    assert interval is not None
    half = 1.96 * np.sqrt(0.4 * 0.6 / 3600)
    assert interval == pytest.approx((0.4 - half, 0.4 + half), abs=0.001)
    assert share_interval(right[:1]) is None


@pytest.fixture(scope="module")
def tokenizer() -> DocumentTokenizer:
    return ByteBPE(300, 1e4).make(
        ["question: where is it \n answer: in the town\n\ntitle: A, source: it is in town"] * 9
    )


def test_what_ends_an_answer(tokenizer: DocumentTokenizer) -> None:
    ends = line_ends(tokenizer)
    for token in range(tokenizer.vocabulary_size):
        text = tokenizer.decode([np.array([token])])[0]
        assert (token in ends) == ("\n" in text or token == tokenizer.document_marker)
    [tokens] = tokenizer.encode([" in town\nmore"])
    assert answer_text(tokenizer, torch.from_numpy(tokens[1:].astype(np.int64))) == "in town"


@pytest.fixture(scope="module")
def asked(tokenizer: DocumentTokenizer) -> Questions:
    passages = tuple(Passage("Town", text) for text in ("it is in the town of towns", "no"))
    rows = [Question(text, ("x",), "x", passages[:count]) for text, count in (("a", 2), ("is it", 0), ("where is", 1))]
    return Questions(rows, tokenizer, chunk_length=M, neighbor_length=2 * M, k=K)


@pytest.mark.parametrize("k", [0, 1, K])
def test_greedy_decoding_takes_the_likeliest_token_each_time(
    tokenizer: DocumentTokenizer, asked: Questions, k: int
) -> None:
    """Against a loop that asks for one question at a time, and for the whole sequence's loss of every next token."""
    size = SizeConfig(
        name="x", width=16, ffw_width=16, heads=2, head_size=8, layers=2, cca_layers=[2], encoder_width=8,
        encoder_ffw_width=8, encoder_heads=1, encoder_head_size=8, encoder_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = RetroModel(size, ModelConfig(chunk_length=M, init_std=0.6), tokenizer.vocabulary_size).double().eval()
    batch = to_int64(QuestionBatches(asked, 3, K)[0]["batch"])
    ends = set(range(0, tokenizer.vocabulary_size, 9))  # often enough for some answers to end early
    answers = greedy_answers(model, batch, k, ends)
    lengths = [naive(model, batch, k, ends, answers[row], row) for row in range(3)]
    assert len(set(lengths)) > 1
    assert answers.shape == (3, M)


@torch.no_grad()
def naive(model: RetroModel, batch: dict[str, Tensor], k: int, ends: set[int], answer: Tensor, row: int) -> int:
    tokens = batch["tokens"][row, :M].tolist()
    neighbors = {
        "neighbors": batch["neighbors"][row : row + 1, :, :k],
        "neighbor_lengths": batch["neighbor_lengths"][row : row + 1, :, :k],
    }
    for place in range(M):
        text = torch.tensor([tokens])
        logits = model.logits(model(text, **(neighbors if k else {}), padding=batch["padding"][row : row + 1]))[0, -1]
        best = max(range(len(logits)), key=lambda token: float(logits[token]))
        assert int(answer[place]) == best
        tokens.append(best)
        if best in ends:
            assert (answer[place + 1 :] == NO_TOKEN).all()
            return place + 1
    return M
