"""A working directory of its own for each test, and the command line inside the test's process with stub tasks."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig

from retro_lab import cli
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks.config import RunConfig

Task = Callable[[RunConfig, RunFolder], object]
CommandLine = Callable[..., int]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what Hydra remembers of a run is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("RETRO_LAB_COMMAND", "")  # what a command of the test leaves there ends with it
    monkeypatch.delenv("RETRO_LAB_OUTPUTS", raising=False)
    monkeypatch.delenv("RETRO_LAB_ARTIFACTS", raising=False)
    yield tmp_path
    HydraConfig.instance().cfg = None


@pytest.fixture
def write(workspace: Path) -> Callable[[str, str], Path]:
    """Write a file of the user's own."""

    def write_file(name: str, text: str) -> Path:
        path = workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def stub_task(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Task], None]:
    """Put a function in the place of a task's `run`."""

    def put(name: str, run: Task) -> None:
        module: Any = ModuleType(f"retro_lab.tasks.{name}")
        module.run = run
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return put


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Run the command line in this process and return its exit code."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["retro-lab", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run
