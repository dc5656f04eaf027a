"""The cluster for all tests of this folder, a place to work, and what they submit."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from in_process import furnish, run_in, small
from two_nodes import TwoNodes, missing

REQUIRED = "RETRO_LAB_REQUIRE_SLURM"
"""Environment variable with which these tests fail rather than being skipped."""
OVERRIDES = [
    "+experiment=quickstart", "corpus=local", "corpus.path=my.jsonl", "retrieval.method=bm25", "decontamination=none",
    "deduplication=none", "trainer=cpu", "logger=none", "cluster.cpus_per_task=1", "schedule.tokens=1024",
    "callbacks.checkpoint.every_n_train_steps=2", "evaluation.datasets=[validation]",
]  # fmt: skip


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    if absent := missing():
        reason = f"not installed: {', '.join(absent)} (Debian's packages slurm-wlm and munge)"
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)
    if os.getuid() != 0:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)("SLURM's daemons need root")
    started = TwoNodes(tmp_path_factory.mktemp("slurm"))
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return furnish(tmp_path_factory.mktemp("jobs"), tiny_bert)


class Lab:
    """The command line in a folder of the cluster."""

    def __init__(self, cluster: TwoNodes, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in this process."""
        threads = {"OMP_NUM_THREADS": "1", "COVERAGE_PROCESS_START": ""}  # which jobs inherit
        return run_in(self.folder, arguments, self.cluster.environment | threads)

    def submit(self, *arguments: str, check: int = 0) -> str:
        """Submit a small run and return what the command printed."""
        own = [text for text in OVERRIDES if not any(text.partition("=")[0] == a.partition("=")[0] for a in arguments)]
        done = self.run("submit", *small([*own, *arguments]), *own, *arguments)
        assert done.returncode == check, done.stdout + done.stderr
        return done.stdout + done.stderr

    def state(self, run: str) -> dict[str, object]:
        """Return what a job said last."""
        path = self.folder / "outputs" / run / "job" / "state.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            return {}

    def log(self, run: str) -> str:
        """Return what a job printed."""
        path = self.folder / "outputs" / run / "job" / "output.log"
        return path.read_text() if path.is_file() else ""

    def down(self) -> str:
        """Return the nodes that SLURM knows to be lost."""
        return self.cluster.run("sinfo", "--noheader", "--states=down", "--format=%N")

    def ended(self, *runs: str) -> Callable[[], bool]:
        """Return a function that tells whether jobs have ended; a job in the queue starts at its earliest."""

        def tell() -> bool:
            for line in self.cluster.run("squeue", "--noheader", "--format=%i|%r").splitlines():
                if line.endswith("|BeginTime"):  # SLURM lets a job that is queued again wait for two minutes
                    subprocess.run(
                        ["scontrol", "update", f"JobId={line.partition('|')[0]}", "StartTime=now"],
                        env=os.environ | self.cluster.environment, capture_output=True,
                    )  # fmt: skip
            return all(self.state(run).get("status") in ("done", "failed") for run in runs)

        return tell


@pytest.fixture(scope="session")
def lab(cluster: TwoNodes, workplace: Path) -> Lab:
    return Lab(cluster, workplace)
