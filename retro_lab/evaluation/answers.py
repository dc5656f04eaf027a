"""How a model answers questions: greedy decoding, and exact match with one of the right answers.

Answers are compared as SQuAD's official script, DPR and Fusion-in-Decoder do: in lower case, without punctuation,
articles and superfluous spaces.
"""

import re
import string
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.evaluation.scoring import ScoringModule
from retro_lab.evaluation.windows import WindowBatch
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.sharding import free_gathered
from retro_lab.retrieval.questions import Questions
from retro_lab.retrieval.sequences import Batch, documents_of, neighbors_of, padding_of, to_int64

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


def line_ends(tokenizer: DocumentTokenizer) -> Tensor:
    """Return which tokens end an answer, the document marker and those with a line break; bool [V]."""
    ends = torch.zeros(tokenizer.vocabulary_size, dtype=torch.bool)
    texts = tokenizer.tokenizer.decode_batch([[i] for i in range(len(ends))], skip_special_tokens=False)
    ends[[i for i, text in enumerate(texts) if "\n" in text]] = True
    ends[tokenizer.document_marker] = True
    return ends


def answer_text(tokenizer: DocumentTokenizer, tokens: Tensor) -> str:
    """Return the text of a decoded answer [T], up to the end of its line."""
    return tokenizer.decode([tokens[tokens != NO_TOKEN].numpy()])[0].partition("\n")[0].strip()


@torch.no_grad()
def greedy_answers(
    model: LanguageModel, batch: Batch, k: int, ends: Tensor, all_ended: Callable[[bool], bool] = bool
) -> Tensor:
    """Decode the most likely next token of each sequence again and again, from its first chunk on.

    Args:
        model: The model, in evaluation mode.
        batch: With ids as int64; of its tokens, those of the first chunk are read.
        k: Neighbors to read, those of the first chunk.
        ends: bool [V], the tokens that end an answer, themselves included.
        all_ended: Told whether all answers here have ended, says whether to stop: ranks must call the model as often as
            each other.

    Returns:
        int64 [B, M], of which `NO_TOKEN` comes after the end. An answer has M tokens at most, those that can attend to
        the neighbors of the first chunk.
    """
    m = model.chunk_length
    tokens, documents = batch["tokens"][:, :m], documents_of(batch)
    answers = tokens.new_full((len(tokens), m), NO_TOKEN)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for place in range(m):
        of_tokens = None if documents is None else documents[:, : m + place]
        hidden = model(tokens, *neighbors_of(batch, k), of_tokens, padding_of(batch))
        chosen = model.logits(hidden[:, -1]).argmax(-1)
        answers[:, place] = chosen.masked_fill(ended, NO_TOKEN)
        ended = ended | ends[chosen]
        if all_ended(bool(ended.all())):
            break
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
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

    ends: Tensor

    def __init__(self, model: LanguageModel, k: int, ends: Tensor) -> None:
        """Answer with `model`; `ends`, bool [V], are the tokens that end an answer."""
        super().__init__(model, ())
        self.k, self.answers = k, Answers()
        self.register_buffer("ends", ends, persistent=False)

    def on_validation_epoch_start(self) -> None:
        """Forget earlier answers."""
        self.answers.reset()

    def validation_step(self, batch: WindowBatch, batch_idx: int) -> None:
        """Answer a batch of questions."""
        answers = greedy_answers(self.model, to_int64(batch["batch"]), self.k, self.ends, self._all_ended)
        self.answers.update(batch["windows"], answers)

    def on_validation_epoch_end(self) -> None:
        """Free what a sharded model has gathered."""
        free_gathered(self.model)

    def _all_ended(self, here: bool) -> bool:
        if self.trainer.world_size == 1:
            return here
        return self.trainer.strategy.reduce_boolean_decision(here, all=True)


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
