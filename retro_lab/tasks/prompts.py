"""Files of prompts: one a line, or JSON lines."""

import json
from pathlib import Path

from retro_lab.errors import CorpusError

KEY = "prompt"


def read_prompts(path: Path) -> list[str]:
    """Read the prompts of a file, as they stand; empty lines are left out.

    Args:
        path: One prompt a line, or, if it ends in `.jsonl`, a JSON object with `prompt`, whose other keys are ignored.

    Raises:
        CorpusError: The file cannot be read, holds no prompts, or a line of it holds none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"task.prompts: {path} cannot be read ({error.strerror}).") from error
    read = _of_json if path.suffix == ".jsonl" else _of_text
    # Of all that Python takes for the end of a line, editors agree on these two.
    lines = [line.removesuffix(b"\r") for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    prompts = [
        read(line, f"task.prompts: {path}: line {number:,}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not prompts:
        raise CorpusError(f"task.prompts: {path} holds no prompts; write one a line.")
    return prompts


def _of_text(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where} is not UTF-8 ({error.reason}); save the file as UTF-8.") from error


def _of_json(line: bytes, where: str) -> str:
    text = _of_text(line, where)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f'{where} is not JSON; write {{"{KEY}": "..."}}, one object a line.') from error
    if not isinstance(row, dict) or not isinstance(row.get(KEY), str):
        raise CorpusError(f"{where} is no object with a text `{KEY}`.")
    prompt: str = row[KEY]
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise CorpusError(f"{where} has half of a surrogate pair in its `{KEY}`, which is no character.")
    return prompt
