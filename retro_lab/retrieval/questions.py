r"""What a model reads of a question (Borgeaud et al. 2022, Sec. 4.3): padding, question, answer, and passages.

With M = 64, the first chunk ends with "answer:", so its neighbors are those of the question. The first token that
attends to them is the last of the chunk, which predicts the first token of the answer:

    chunk 1   [ padding  "question: {question} \n answer:" ]    neighbors "title: {title}, source: {text}", 2M tokens
    chunk 2   [ " {answer}\n"                               ]    all its tokens attend to the neighbors of chunk 1

The paper does not say how an answer ends. Here it ends with its line: models know line breaks from their training, but
never predict a document marker.

A question that is too long for its chunk loses its first tokens, and an answer or passage its last: every question of a
file counts, and results can be compared with those of others.
"""

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from retro_lab.corpus.questions import Question
from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.retrieval.sequences import Batch

PROMPT = "question: {question} \n answer:"
ANSWER = " {answer}\n"
PASSAGE = "title: {title}, source: {text}"
ENCODED_AT_ONCE = 256
"""Questions whose texts are encoded together."""


class Asked(NamedTuple):
    """A question, and the answers that count as right."""

    question: str
    answers: tuple[str, ...]


class Questions:
    """Questions as sequences of 2M - 1 tokens, to train on and to answer; a question's number is that of its chunk.

    The last of the 2M tokens is only predicted, so that the second chunk is never complete and needs no neighbors.
    """

    chunks_per_sequence = 1

    def __init__(
        self,
        questions: Iterable[Question],
        tokenizer: DocumentTokenizer,
        *,
        chunk_length: int,
        neighbor_length: int,
        k: int,
        with_documents: bool = False,
    ) -> None:
        """Encode everything at once.

        Args:
            questions: In the order of their numbers.
            tokenizer: Of the model.
            chunk_length: M.
            neighbor_length: R, the tokens of a neighbor.
            k: Passages of each question, the first ones; missing ones have length 0.
            with_documents: For a model that masks other documents.
        """
        self.chunk_length, self.k, self.with_documents = chunk_length, k, with_documents
        self.length = 2 * chunk_length - 1
        self.asked: list[Asked] = []
        prompts, answers, neighbors = [], [], []
        remaining = iter(questions)
        while some := list(islice(remaining, ENCODED_AT_ONCE)):
            self.asked += [Asked(one.question, one.answers) for one in some]
            prompts.append(self._encode(tokenizer, [PROMPT.format(question=one.question) for one in some]))
            answers.append(self._encode(tokenizer, [ANSWER.format(answer=one.target) for one in some]))
            kept = [one.passages[:k] for one in some]
            texts = [PASSAGE.format(title=passage.title, text=passage.text) for found in kept for passage in found]
            rows = np.repeat(np.arange(len(some)), [len(found) for found in kept])
            places = [place for found in kept for place in range(len(found))]
            read = np.zeros((len(some), k, neighbor_length), tokenizer.dtype), np.zeros((len(some), k), np.int64)
            _fill(*read, rows, places, self._encode(tokenizer, texts))
            neighbors.append(read)
        self.cut_questions = sum(len(row) > chunk_length for rows in prompts for row in rows)
        last = [[row[-chunk_length:] for row in rows] for rows in prompts]
        first = [[row[:chunk_length] for row in rows] for rows in answers]
        dtype = tokenizer.dtype
        self._padding = np.array([chunk_length - len(row) for rows in last for row in rows])
        self._answer_lengths = np.array([len(row) for rows in first for row in rows])
        self._tokens = np.zeros((len(self.asked), 2 * chunk_length), dtype)
        for number, (prompt, answer) in enumerate(
            (prompt, answer) for some in zip(last, first, strict=True) for prompt, answer in zip(*some, strict=True)
        ):
            self._tokens[number, chunk_length - len(prompt) : chunk_length] = prompt
            self._tokens[number, chunk_length : chunk_length + len(answer)] = answer
        self._neighbors = np.concatenate([tokens for tokens, _ in neighbors])
        self._neighbor_lengths = np.concatenate([lengths for _, lengths in neighbors])
        sizes = tokenizer.token_bytes[self._tokens[:, chunk_length:]]
        self.answer_bytes = np.where(np.arange(chunk_length) < self._answer_lengths[:, None], sizes, 0).sum(1)
        """UTF-8 bytes of the answer to learn of each question, with the end of its line."""

    @staticmethod
    def _encode(tokenizer: DocumentTokenizer, texts: list[str]) -> list[np.ndarray]:
        return [row[1:] for row in tokenizer.encode(texts)]  # without the marker

    def __len__(self) -> int:
        """Return how many questions there are."""
        return len(self.asked)

    def read(self, first_chunks: np.ndarray, k: int) -> Batch:
        """Read questions by number, [B], with their first k passages as neighbors of the first chunk."""
        tokens = torch.from_numpy(self._tokens[first_chunks])
        batch = Batch(
            tokens=tokens[:, :-1],
            targets=tokens[:, 1:],
            mask=torch.from_numpy(self.is_text(first_chunks)),
            neighbors=torch.empty(0),
            neighbor_lengths=torch.empty(0),
            documents=torch.empty(0),
            padding=torch.from_numpy(self._padding[first_chunks]),
        )
        if self.with_documents:
            batch["documents"] = torch.zeros(len(tokens), self.length, dtype=torch.int64)
        if k:
            batch["neighbors"] = torch.from_numpy(self._neighbors[first_chunks, :k])[:, None]
            batch["neighbor_lengths"] = torch.from_numpy(self._neighbor_lengths[first_chunks, :k])[:, None]
        return batch

    def is_text(self, first_chunks: np.ndarray) -> np.ndarray:
        """Return which targets count: the answer and the end of its line; bool [B, 2M - 1]."""
        place = np.arange(1, self.length + 1) - self.chunk_length  # of the target in the second chunk
        return (place >= 0) & (place < self._answer_lengths[first_chunks, None])

    def document_ids(self, first_chunks: np.ndarray) -> list[str]:
        """Return the questions themselves."""
        return [repr(self.asked[number].question) for number in first_chunks]


def _fill(
    tokens: np.ndarray, lengths: np.ndarray, rows: np.ndarray, places: list[int], encoded: list[np.ndarray]
) -> None:
    """Put passages into `tokens` [Q, K, R] at their rows and places, each cut to R, and their lengths into [Q, K]."""
    for row, place, passage in zip(rows, places, encoded, strict=True):
        kept = passage[: tokens.shape[2]]
        tokens[row, place, : len(kept)] = kept
        lengths[row, place] = len(kept)
