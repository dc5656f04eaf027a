"""How a model answers questions: greedy decoding, and exact match with one of the right answers.

Answers are compared as SQuAD's official script, DPR and Fusion-in-Decoder do: in lower case, without punctuation,
articles and superfluous spaces.
"""

import re
import string
from collections.abc import Callable, Iterable, Set

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.evaluation.scoring import ScoringModule
from retro_lab.evaluation.windows import WindowBatch
from retro_lab.generation.decoder import Decoder, Writing
from retro_lab.generation.retrieved import Found
from retro_lab.generation.sampling import Sampling
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.sharding import free_gathered
from retro_lab.retrieval.neighbors import NO_NEIGHBOR
from retro_lab.retrieval.questions import Questions
from retro_lab.retrieval.sequences import Batch, neighbors_of, padding_of

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLE = re.compile(r"\b(a|an|the)\b")
NO_TOKEN = -1
"""Fills up the tokens of an answer that has ended."""


def normalized(answer: str) -> str:
    """Return an answer in the form in which answers are compared."""
    return " ".join(ARTICLE.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def is_exact_match(answer: str, right: Iterable[str]) -> bool:
    """Return whether an answer is one of those that count as right, apart from case, punctuation and articles."""
    return normalized(answer) in map(normalized, right)


def line_ends(tokenizer: DocumentTokenizer) -> set[int]:
    """Return the tokens that end an answer: the document marker and those with a line break."""
    ids = range(tokenizer.vocabulary_size)
    texts = tokenizer.tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False)
    return {tokenizer.document_marker, *(i for i, text in enumerate(texts) if "\n" in text)}


def answer_text(tokenizer: DocumentTokenizer, tokens: Tensor) -> str:
    """Return the text of a decoded answer [T], up to the end of its line."""
    return tokenizer.decode([tokens[tokens != NO_TOKEN].numpy()])[0].partition("\n")[0].strip()


class _Answer(Writing):
    """An answer while it is written."""

    def __init__(self, question: list[int], number: int, padding: int, ends: Set[int]) -> None:
        super().__init__(question, Sampling().draws(number), padding=padding)
        self._ends, self._longest = ends, 2 * len(question)

    def ends(self) -> bool:
        """Return whether the last token ends the answer."""
        return self.tokens[-1] in self._ends or len(self.tokens) == self._longest


def greedy_answers(
    model: LanguageModel, batch: Batch, k: int, ends: Set[int], goes_on: Callable[[bool], bool] = bool
) -> Tensor:
    """Write the most likely answers to questions, each of which is a first chunk with its neighbors.

    Args:
        model: The model, in evaluation mode.
        batch: Of its tokens, those of the first chunk are read.
        k: Neighbors to read, those of the first chunk.
        ends: The tokens that end an answer, themselves included.
        goes_on: Told whether an answer here is still written, says whether to read another token: ranks must call the
            model as often as each other.

    Returns:
        int64 [B, M], of which `NO_TOKEN` comes after the end. An answer has M tokens at most, those that can attend to
        the neighbors of the first chunk.
    """
    m = model.chunk_length
    padding = padding_of(batch)
    paddings = [0] * len(batch["tokens"]) if padding is None else padding.tolist()
    questions = batch["tokens"][:, :m].tolist()
    texts = [_Answer(*row, ends) for row in zip(questions, range(len(questions)), paddings, strict=True)]
    neighbors, lengths = neighbors_of(batch, k)
    if neighbors is not None and lengths is not None:
        unknown = np.full(k, NO_NEIGHBOR), np.full(k, np.nan, np.float32)
        for text, tokens, real in zip(texts, neighbors[:, 0].cpu().numpy(), lengths[:, 0].cpu().numpy(), strict=True):
            text.found[m] = Found(*unknown, tokens, real)
    Decoder(model, Sampling(), None, length=2 * m, goes_on=goes_on, padding_in_grid=True).write(texts)
    answers = torch.full((len(texts), m), NO_TOKEN, device=batch["tokens"].device)
    for row, text in enumerate(texts):
        answers[row, : len(text.tokens) - m] = torch.tensor(text.tokens[m:])
    return answers


class Answers(Metric):
    """The decoded answers of all devices, by the number of their question."""

    full_state_update = False
    numbers: list[Tensor] | Tensor
    tokens: list[Tensor] | Tensor

    def __init__(self) -> None:
        """Start without answers."""
        super().__init__()
        for name in ("numbers", "tokens"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, numbers: Tensor, tokens: Tensor) -> None:
        """Add answers.

        Args:
            numbers: int64 [B], of the questions; a question may come twice.
            tokens: int64 [B, M], as `greedy_answers` returns them.
        """
        assert isinstance(self.numbers, list)
        assert isinstance(self.tokens, list)
        self.numbers.append(numbers)
        self.tokens.append(tokens)

    def compute(self) -> Tensor:
        """Return the answer of each question in order, int64 [Q, M]."""
        numbers, tokens = dim_zero_cat(self.numbers), dim_zero_cat(self.tokens)
        answers = tokens.new_empty(int(numbers.max()) + 1, tokens.shape[1])
        answers[numbers] = tokens
        return answers.cpu()


class AnsweringModule(ScoringModule):
    """Answers questions with k passages each."""

    def __init__(self, model: LanguageModel, k: int, ends: Set[int]) -> None:
        """Answer with `model`; `ends` are the tokens that end an answer."""
        super().__init__(model, ())
        self.k, self.ends, self.answers = k, ends, Answers()

    def on_validation_epoch_start(self) -> None:
        """Forget earlier answers."""
        self.answers.reset()

    def validation_step(self, batch: WindowBatch, batch_idx: int) -> None:
        """Answer a batch of questions."""
        answers = greedy_answers(self.model, batch["batch"], self.k, self.ends, self._goes_on)
        self.answers.update(batch["windows"], answers)

    def on_validation_epoch_end(self) -> None:
        """Free what a sharded model has gathered."""
        free_gathered(self.model)

    def _goes_on(self, here: bool) -> bool:
        if self.trainer.world_size == 1:
            return here
        return self.trainer.strategy.reduce_boolean_decision(here, all=False)


class QuestionBatches:
    """All questions in order, in batches, to answer or to score the answers of."""

    def __init__(self, questions: Questions, batch_size: int, k: int) -> None:
        """Take `batch_size` questions at a time, each with k passages."""
        self.questions, self.batch_size, self.k = questions, batch_size, k

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.questions) // self.batch_size)

    def __getitem__(self, index: int) -> WindowBatch:
        """Read a batch; its bytes are those of the answers to learn."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        numbers = np.arange(len(self.questions))[index * self.batch_size : (index + 1) * self.batch_size]
        return WindowBatch(
            batch=self.questions.read(numbers, self.k),
            windows=torch.from_numpy(numbers),
            bytes=torch.tensor(int(self.questions.answer_bytes[numbers].sum())),
            documents=torch.tensor(len(numbers)),
        )
