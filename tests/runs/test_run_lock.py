"""Two commands never write to one run folder at once, and a killed one blocks nobody."""

import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from retro_lab.errors import RunInUseError
from retro_lab.runs.folder import RunFolder


def hold(folder: Path, ready: Any) -> None:
    with RunFolder(folder).held():
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Another process that works in the folder."""
    context = get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", ready))
    process.start()
    assert ready.wait(20)
    yield process
    process.kill()
    process.join()


def test_a_second_command_is_refused_until_the_first_is_gone(tmp_path: Path, holder: Any) -> None:
    with pytest.raises(RunInUseError, match=r"run right now.*name=NAME") as caught, RunFolder(tmp_path / "run").held():
        pass
    assert caught.value.exit_code == 2
    with RunFolder(tmp_path / "another").held():
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with RunFolder(tmp_path / "run").held():
        pass


def test_ranks_of_one_command_do_not_lock_each_other_out(
    tmp_path: Path, holder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with RunFolder(tmp_path / "run").held():
        pass
