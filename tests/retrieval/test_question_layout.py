"""Where question, answer and passages of Sec. 4.3 stand in what a model reads."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retro_lab.corpus.questions import Passage, Question
from retro_lab.corpus.tokenizer import ByteBPE, DocumentTokenizer
from retro_lab.retrieval.questions import Questions

M, R, K = 32, 64, 3
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def tokenizer() -> DocumentTokenizer:
    return ByteBPE(400, 1e4).make(
        ["question: where was she born \n answer: in the town \n title: Ada, source: she was born"] * 9
    )


def laid_out(questions: list[Question], tokenizer: DocumentTokenizer, k: int = K) -> Questions:
    return Questions(questions, tokenizer, chunk_length=M, neighbor_length=R, k=k)


@given(question=TEXT, target=TEXT, passages=st.lists(st.tuples(TEXT, st.text(max_size=300)), max_size=K))
def test_every_part_stands_in_its_place(
    tokenizer: DocumentTokenizer, question: str, target: str, passages: list[tuple[str, str]]
) -> None:
    """Decoded from the tensors themselves: each part whole, or cut at the end that it may lose."""
    asked = Question(question, (target,), target, tuple(Passage(*passage) for passage in passages))
    questions = laid_out([asked], tokenizer)
    batch = questions.read(np.array([0]), K)
    whole = torch.cat([batch["tokens"][0], batch["targets"][0, -1:]]).numpy()
    assert np.array_equal(whole[1:], batch["targets"][0].numpy())
    padding = int(batch["padding"][0])

    def encoded(text: str) -> list[int]:
        return tokenizer.encode([text])[0][1:].tolist()

    prompt = encoded(f"question: {question} \n answer:")
    assert whole[padding:M].tolist() == prompt[-M:]
    assert padding == max(0, M - len(prompt))
    assert tokenizer.decode([whole[M - 8 : M]])[0].endswith("answer:")
    assert questions.cut_questions == (len(prompt) > M)
    learned = whole[1:][batch["mask"][0].numpy()]
    assert learned.tolist() == encoded(f" {target}\n")[:M]
    assert batch["mask"][0].nonzero()[0] == M - 1  # the last token of "answer:" predicts the first of the answer
    assert questions.answer_bytes[0] == len(f" {target}\n".encode()) or len(encoded(f" {target}\n")) > M
    for place in range(K):
        length = int(batch["neighbor_lengths"][0, 0, place])
        found = batch["neighbors"][0, 0, place, :length].tolist()
        title, text = passages[place] if place < len(passages) else ("", "")
        assert found == (encoded(f"title: {title}, source: {text}")[:R] if place < len(passages) else [])
    assert batch["tokens"].shape == (1, 2 * M - 1)
    assert batch["neighbors"].shape == (1, 1, K, R)


def test_questions_are_read_by_number(tokenizer: DocumentTokenizer) -> None:
    rows = [Question(f"q{i}", (f"a{i}",), f"a{i}", (Passage(f"t{i}", "x"),) * (i % 3)) for i in range(600)]
    questions = laid_out(rows, tokenizer)
    assert len(questions) == 600
    numbers = np.array([599, 0, 257])
    batch = questions.read(numbers, 2)
    for row, number in enumerate(numbers):
        [alone] = [laid_out([rows[number]], tokenizer).read(np.array([0]), 2)]
        assert torch.equal(batch["tokens"][row], alone["tokens"][0])
        assert torch.equal(batch["neighbors"][row], alone["neighbors"][0])
        assert batch["neighbor_lengths"][row].count_nonzero() == number % 3
    assert batch["neighbors"].shape[2] == 2
    assert questions.document_ids(np.array([3])) == ["'q3'"]
    assert laid_out(rows[:2], tokenizer, k=0).read(np.array([0, 1]), 0)["neighbors"].numel() == 0
