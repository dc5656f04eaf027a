"""`task=generate`: what it is asked for is refused before a model is opened, and prompts are read as they stand."""

from pathlib import Path
from typing import Any

import pytest

from retro_lab.errors import ConfigurationError, CorpusError
from retro_lab.tasks.prompts import read_prompts
from retro_lab.tasks.task_config import GenerateConfig


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, r"task=generate .*prompt=TEXT or task\.prompts=FILE\."),
        ({"prompt": "a", "prompts": "b"}, r"prompt and task\.prompts .*one of them\."),
        ({"prompt": "a", "top_k": 3}, r"task\.top_k=3 .*task\.temperature=0 .*such as 1\."),
        ({"prompt": "a", "top_p": 0.5}, r"task\.top_p=0\.5 .*task\.temperature=0 .*such as 1\."),
        ({"prompt": "a", "temperature": 1.0, "top_p": 1.5}, r"task\.top_p is a share.*1\.5\."),
        ({"prompt": "a", "neighbors": ["a"], "k": 2}, r"task\.neighbors .*task\.k .*"),
        ({"prompt": "a", "neighbors": ["a", ""]}, r"task\.neighbors has an empty text.*"),
        ({"prompt": "a", "stop": [""]}, r"task\.stop has an empty text.*"),
        ({"prompt": "a", "model": "other"}, r"task\.model .*not other\."),
        ({"prompt": "a", "max_tokens": 0}, r"task\.max_tokens must be positive, not 0\."),
        ({"prompt": "a\udcff"}, r"prompt, .*UTF-8.*"),
    ],
)
def test_what_cannot_be_generated_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{sentence}$"):
        GenerateConfig(**settings)


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("p.txt", " a \r\n\nb, 'c' ${d}\n", [" a ", "b, 'c' ${d}"]),
        ("p.txt", '\ufeff{"prompt": 1}', ['{"prompt": 1}']),
        ("p", "a\x0bb\u2028c\x85d", ["a\x0bb\u2028c\x85d"]),
        ("p.jsonl", '\ufeff{"prompt": " a\\nb "}\n\n{"id": 7, "prompt": ""}\n', [" a\nb ", ""]),
        ("p.jsonl", '{"prompt": "\\ud83d\\ude42"}', ["🙂"]),
    ],
)
def test_prompts_of_a_file_are_what_stands_there(tmp_path: Path, name: str, content: str, prompts: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert read_prompts(path) == prompts


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.txt", b"a\n\xff\n", r"line 2 .*UTF-8.*"),
        ("p.txt", b"\n", r"holds no prompts.*"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ', r"line 2 .*JSON.*"),
        ("p.jsonl", b'["a"]', r"line 1 .*`prompt`.*"),
        ("p.jsonl", b'{"prompt": 1}', r"line 1 .*`prompt`.*"),
        ("p.jsonl", b'{"text": "a"}', r"line 1 .*`prompt`.*"),
        ("p.jsonl", b'{"prompt": "\\ud83d"}', r"line 1 .*surrogate.*"),
        ("p.jsonl", b"[" * 100_000, r"line 1 .*JSON.*"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=f"^task.prompts: {path}:? {sentence}$"):
        read_prompts(path)


def test_a_file_of_prompts_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"^task.prompts: .*none\.txt cannot be read \(No such file"):
        read_prompts(tmp_path / "none.txt")
