"""Workers of Ray on the command line, interrupted and run again: the artifacts of one process, nothing left over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from disturbed_builds import checksums
from in_process import furnish, run, small

WANTED = (
    "+experiment=quickstart", "corpus=local", "corpus.path=my.jsonl", "trainer=cpu", "task=build", "logger=none",
    "retrieval.k=2", "evaluation.datasets=[validation]",
)  # fmt: skip
ON_RAY = ("build.dispatcher=ray", "build.workers=2", "paths.artifacts=by_ray")


def test_ray_builds_what_one_process_builds_and_ctrl_c_ends_all_of_it(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.chdir(furnish(tmp_path, tiny_bert))
    command = [*small(WANTED), *WANTED]
    process = subprocess.Popen(
        [sys.executable, "-m", "retro_lab", *command, *ON_RAY], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"MARK_OF_TEST": str(tmp_path)},
    )  # fmt: skip
    while not list(Path("by_ray").glob("*/*/manifest.json")):
        assert process.poll() is None
        time.sleep(0.1)
    assert len(marked(tmp_path)) > 2
    process.send_signal(signal.SIGINT)
    printed, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert messages.splitlines()[-1] == "Interrupted; run the same command again to resume."
    assert printed == ""
    assert {line.split()[0] for line in messages.splitlines()[:-1]} <= {"ray", *stages(Path("by_ray"))}
    deadline = time.monotonic() + 10
    while left := marked(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert run([*command, "paths.artifacts=alone"], monkeypatch) == 0
    assert run([*command, *ON_RAY], monkeypatch) == 0
    assert checksums(Path("by_ray")) == checksums(Path("alone"))


def stages(root: Path) -> set[str]:
    """Return the names of the stages that were begun."""
    return {path.name for path in root.iterdir()}


def marked(folder: Path) -> list[str]:
    """Return the processes that inherited the mark of a test."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MARK_OF_TEST={folder}".encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found
