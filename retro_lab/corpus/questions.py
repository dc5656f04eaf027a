"""Questions with their answers and the passages retrieved for them, from files of the Fusion-in-Decoder release.

The release (github.com/facebookresearch/FiD, Natural Questions with the passages of DPR) has one JSON array for each
split; NQ-open has one object a line, without passages:

    {"question": ..., "answers": [...], "target": ..., "ctxs": [{"title": ..., "text": ...}, ...]}
    {"question": ..., "answer": [...]}

An array of several gigabytes is read one question at a time.
"""

import io
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijson  # type: ignore[import-untyped]

from retro_lab.corpus.sources.compression import DECOMPRESSORS, WholeStreams
from retro_lab.corpus.sources.local_files import COMPRESSIONS
from retro_lab.corpus.sources.records import enumerate_rows
from retro_lab.errors import CorpusError


@dataclass(frozen=True)
class Passage:
    """A retrieved passage and the title of its article."""

    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question, the answers that count as right, and what was retrieved for it, the best passage first."""

    question: str
    answers: tuple[str, ...]
    target: str
    """The answer to learn: the file's `target`, or else its first answer."""
    passages: tuple[Passage, ...]


def read_questions(path: Path, passages: int) -> Iterator[Question]:
    """Yield the questions of a file: a JSON array or JSON lines, compressed or not.

    Args:
        path: Of the file.
        passages: Passages to read for each question, the first ones; 0 reads none.

    Raises:
        CorpusError: The file is missing, damaged or without questions, or a question lacks something.
    """
    found = 0
    with _opened(path) as stream:
        for found, row in enumerate_rows(_rows(stream), str(path)):
            yield _question(row, passages, f"{path}: question {found:,}")
    if not found:
        raise CorpusError(f"{path} holds no questions; it must be an array of questions, or one question a line.")


def _rows(stream: io.BufferedReader) -> Iterator[Any]:
    """Yield the elements of an array, or the values of all lines."""
    if stream.peek().startswith(BOM_UTF8):
        stream.read(len(BOM_UTF8))
    beginning = stream.peek().lstrip()
    if beginning:  # an empty file is no JSON to ijson
        array = beginning.startswith(b"[")
        yield from ijson.items(stream, "item" if array else "", multiple_values=not array, use_float=True)


def _question(row: Any, passages: int, where: str) -> Question:
    if not isinstance(row, dict) or not _is_text(row.get("question")):
        raise CorpusError(f"{where} is no object with a text `question`, as in the Fusion-in-Decoder release.")
    answers = row.get("answers", row.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(map(_is_text, answers)):
        raise CorpusError(f"{where} ({row['question']}) has no `answers`, a list of texts.")
    target = row.get("target", answers[0])
    if not _is_text(target):
        raise CorpusError(f"{where} ({row['question']}) has a `target` that is not text.")
    contexts = row.get("ctxs", [])
    if passages and not contexts:
        raise CorpusError(
            f"{where} ({row['question']}) has no passages (`ctxs`); take a file of the Fusion-in-Decoder release, or "
            "answer without passages, with task.models=[baseline]."
        )
    try:
        kept = tuple(Passage(str(context["title"]), str(context["text"])) for context in contexts[:passages])
    except (TypeError, KeyError) as error:
        raise CorpusError(f"{where} ({row['question']}) has a passage without `title` and `text`.") from error
    return Question(row["question"], tuple(answers), target, kept)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file to read its decompressed bytes.

    Raises:
        CorpusError: It cannot be opened.
    """
    compression = COMPRESSIONS.get(path.suffix)
    try:
        raw = path.open("rb")
    except OSError as error:
        raise CorpusError(
            f"{path} cannot be read ({error.strerror}); task.train, task.validation and task.test name the files of "
            "questions."
        ) from error
    with raw:
        yield io.BufferedReader(WholeStreams(raw, DECOMPRESSORS[compression])) if compression else raw
