"""Files of questions: the Fusion-in-Decoder release, NQ-open, and what is neither."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from retro_lab.corpus.questions import Passage, Question, read_questions
from retro_lab.errors import CorpusError

RELEASE: list[dict[str, Any]] = [
    {
        "id": "0",
        "question": "who wrote it",
        "target": "Bob Russell",
        "answers": ["Bobby Scott", "Bob Russell"],
        "ctxs": [{"id": str(i), "title": f"T{i}", "text": f"text {i}", "score": 1.5} for i in range(3)],
    },
    {"question": "wo liegt Köln", "answers": ["am Rhein"], "ctxs": [{"title": "Köln", "text": "Köln liegt"}]},
]
TEXTS = [Passage(f"T{i}", f"text {i}") for i in range(3)]
EXPECTED = [
    Question("who wrote it", ("Bobby Scott", "Bob Russell"), "Bob Russell", tuple(TEXTS[:2])),
    Question("wo liegt Köln", ("am Rhein",), "am Rhein", (Passage("Köln", "Köln liegt"),)),
]


def lines(rows: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RELEASE).encode(),
        json.dumps(RELEASE, indent=1, ensure_ascii=False).encode("utf-8-sig"),
        lines(RELEASE).encode(),
        f"\n{lines(RELEASE)}\n\n".encode(),
    ],
    ids=["array", "array with a byte order mark", "lines", "blank lines"],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_the_releases_are_read(tmp_path: Path, content: bytes, compressed: bool) -> None:
    path = tmp_path / ("questions.json.gz" if compressed else "questions.json")
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert list(read_questions(path, 2)) == EXPECTED


def test_questions_without_passages(tmp_path: Path) -> None:
    path = tmp_path / "NQ-open.jsonl"
    path.write_text(lines([{"question": "when", "answer": ["2017", "in 2017"]}, {"question": "who", "answer": "she"}]))
    assert list(read_questions(path, 0)) == [
        Question("when", ("2017", "in 2017"), "2017", ()),
        Question("who", ("she",), "she", ()),
    ]


@pytest.mark.parametrize(
    ("content", "passages", "words"),
    [
        ("", 0, "holds no questions"),
        ("[]", 0, "holds no questions"),
        ('[{"question": "q", "answers": ["a"]}, {"question": ', 0, "after row 1"),
        ('{"question": "q", "answers": ["a"]}\nnot JSON', 0, "after row 1"),
        ('["q"]', 0, "question 1 is no object with a text `question`"),
        ('{"question": " ", "answers": ["a"]}', 0, "question 1 is no object with a text `question`"),
        ('{"question": "q", "answers": []}', 0, r"question 1 \(q\) has no `answers`"),
        ('{"question": "q", "answers": ["a"], "target": 3}', 0, "`target` that is not text"),
        ('{"question": "q", "answers": ["a"]}', 1, r"question 1 \(q\) has no passages .*task.models=\[baseline\]"),
        ('{"question": "q", "answers": ["a"], "ctxs": [{"text": "t"}]}', 1, "a passage without `title` and `text`"),
        ('{"question": "q", "answers": ["a"], "ctxs": 3}', 1, "a passage without `title` and `text`"),
    ],
)
def test_another_file_is_refused_in_one_sentence(tmp_path: Path, content: str, passages: int, words: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(CorpusError, match=rf"file\.json.*{words}"):
        list(read_questions(path, passages))


def test_a_missing_or_truncated_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"none\.json cannot be read.*task\.train"):
        list(read_questions(tmp_path / "none.json", 0))
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(gzip.compress(json.dumps(RELEASE * 100).encode())[:-20])
    with pytest.raises(CorpusError, match=r"cut\.json\.gz cannot be read after row \d+: its end is missing"):
        list(read_questions(cut, 0))
