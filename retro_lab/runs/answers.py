"""The record of a model that was fine-tuned to answer questions: what it started from, its recipe, and how it answers.

answers.json              the record
answers/SPLIT-k=K.jsonl   each question with the model's answer, and whether it is right
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from retro_lab.artifacts.disk import write_file
from retro_lab.errors import ArtifactError
from retro_lab.runs.records import CurvePoint, Parameters, Provenance

ANSWERS_NAME = "answers.json"
ANSWERS_FOLDER = "answers"
QUESTIONS_FOLDER = "questions"
"""Folder of a run that the fine-tuned models are in, each under the name of the model that it started from."""


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """How many questions of a file were answered right with k passages each."""

    split: str
    """`validation` or `test`."""
    file: str
    """Name of the file."""
    sha256: str
    """Of the file."""
    questions: int
    cut_questions: int
    """Those that are longer than a chunk, of which the model read the end."""
    k: int
    exact_match: float
    """Share of the questions, from 0 to 1."""
    low: float | None
    """Lower bound of the 95% interval over questions; None for fewer than two."""
    high: float | None
    """Upper bound."""


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """One fine-tuned model."""

    model: str
    """Name of the model that it started from, one of `retro_lab.runs.folder.MODELS`."""
    start: str
    """Folder of that model."""
    parameters: Parameters
    passages: int
    """Passages of each question in training."""
    questions: int
    """Questions to train on."""
    steps: int
    stopped: str | None
    """What stopped the training early; None if nothing did."""
    seconds: float
    seed: int
    curve: tuple[CurvePoint, ...]
    """Bits per byte of the answers to learn of the validation questions; tokens are positions, padding included."""
    scores: tuple[ExactMatch, ...]
    provenance: Provenance

    def score(self, split: str, k: int, sha256: str) -> ExactMatch | None:
        """Return how a file was answered with k passages; None if it was not."""
        wanted = (split, k, sha256)
        return next((entry for entry in self.scores if (entry.split, entry.k, entry.sha256) == wanted), None)


RECORD = TypeAdapter(AnswerRecord)


def write_answers(folder: Path, record: AnswerRecord) -> None:
    """Write the record into a model's folder.

    Raises:
        ArtifactError: It cannot be written.
    """
    write_file(folder / ANSWERS_NAME, json.dumps(asdict(record), indent=1, allow_nan=False).encode())


def load_answers(folder: Path) -> AnswerRecord | None:
    """Read the record of a model's folder; None if there is none.

    Raises:
        ArtifactError: It is damaged.
    """
    path = folder / ANSWERS_NAME
    if not path.is_file():
        return None
    try:
        return RECORD.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactError(
            f"{path} is not a whole result ({error}); delete it and run the command that made it again."
        ) from error


def write_predictions(folder: Path, split: str, k: int, rows: Iterable[tuple[str, str, bool]]) -> None:
    """Write each question with the model's answer, and whether it is right.

    Raises:
        ArtifactError: They cannot be written.
    """
    lines = (
        json.dumps({"question": question, "answer": answer, "right": right}, ensure_ascii=True)
        for question, answer, right in rows
    )
    write_file(predictions(folder, split, k), "".join(f"{line}\n" for line in lines).encode())


def predictions(folder: Path, split: str, k: int) -> Path:
    """Return the file of a model's answers to the questions of a split with k passages."""
    return folder / ANSWERS_FOLDER / f"{split}-k={k}.jsonl"
