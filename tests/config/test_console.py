"""What is printed never ends a run, never commands the terminal, and is not too much for a log file."""

import io
import os
import subprocess
import sys
import warnings

import pytest

from retro_lab import console

SCRIPT = """
import os, sys
from retro_lab import console
console.quiet()
for number in range(20):
    console.status("training", f"step {number} " + "x" * 9000)
with console.progress("training", "tokens", 10) as advance:
    advance(3)
console.output.print("bits per byte \\u2013 0.5")
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_character_and_no_closed_stderr_ends_a_run(encoding: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=writer, timeout=60,
            env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"},
        )  # fmt: skip
    finally:
        os.close(writer)
    assert done.returncode == 0
    dash = "–" if encoding == "utf-8" else "?"
    assert done.stdout.decode(encoding) == f"bits per byte {dash} 0.5\n"


def test_terminal_commands_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    console.status("corpus", "a\x1b]0;title\x07b\u202ec\x9bd\udcff é 日本 👩‍💻")
    assert capsys.readouterr().err == "corpus      a\\x1b]0;title\\x07b\\u202ec\\x9bd\\udcff é 日本 👩‍💻\n"
    assert console.visible("a\tb\nc") == "a\tb\nc"


def test_a_log_file_gets_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = io.StringIO(), 0.0
    monkeypatch.setattr(console, "messages", console.Messages(file=log))
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress("training", "tokens", 10_000, 1_000) as advance:
        for _ in range(59):
            now += 1
            advance(50, f"step {int(now)}, loss 2.5")
    lines = log.getvalue().splitlines()
    assert lines == ["training    2,500 of 10,000 tokens, 50 tokens/s, 0:02:30 left, step 30, loss 2.5"]


def test_a_short_stage_leaves_no_line_in_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(console, "messages", console.Messages(file=log))
    with console.progress("tokens", "documents", 3) as advance:
        advance(3)
    assert log.getvalue() == ""


def test_rank_0_alone_prints_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    console.output.print("seen twice")
    monkeypatch.setenv("RANK", "0")
    console.output.print("seen once")
    assert capsys.readouterr().out == "seen once\n"


def test_warnings_of_libraries_are_silenced_and_those_of_users_are_not() -> None:
    modules = ["torch.utils.data.dataloader", "pytorch_lightning", "retro_lab.tasks.train", "torches", "my_callbacks"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        console.quiet()
        for module in modules:
            warnings.warn_explicit(module, UserWarning, "file.py", 1, module)
    assert [str(warning.message) for warning in caught] == ["torches", "my_callbacks"]
