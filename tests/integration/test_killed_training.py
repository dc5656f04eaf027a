"""A training that is killed or asked to stop at random moments ends as if nothing had happened, to the last bit."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import REPOSITORY, furnish, small

ARGUMENTS = [
    "task=train",
    "+experiment=quickstart",
    "corpus=local",
    "corpus.path=my.jsonl",
    "logger=none",
    "model.chunk_length=8",
    "model.dropout=0.1",
    "data.sequence_length=32",
    "corpus.test_fraction=0.05",
    "evaluation.stride=32",
    "evaluation.curve_points=6",
    "retrieval.k=1",
    "schedule.tokens=3072",
    "callbacks.checkpoint.every_n_train_steps=3",
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return furnish(tmp_path_factory.mktemp("workplace"), tiny_bert)


@pytest.mark.parametrize(
    "disturbance",
    [
        ["--kills=3", "data.micro_batch_size=2", "--workers=2"],
        ["--kills=2", "data.micro_batch_size=1", "--ranks=2", "--signals=SIGKILL,SIGTERM"],
        ["--kills=1", "--strategy=fsdp", "--ranks=2"],
    ],
    ids=["one_process", "two_ranks", "two_ranks_sharded"],
)
def test_a_disturbed_training_resumes_exactly(
    workplace: Path, disturbance: list[str], request: pytest.FixtureRequest
) -> None:
    """Weights, optimizer, schedule and curve."""
    tool = REPOSITORY / "tools" / "kill_training.py"
    command = [sys.executable, str(tool), *disturbance, f"--outputs={request.node.callspec.id}"]
    command += [*ARGUMENTS, *small(ARGUMENTS)]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
    log = workplace / "kill_training.log"
    assert done.returncode == 0, done.stdout + done.stderr + log.read_text()[-3000:]
    assert done.stdout.endswith("equal\n")
    steps = [int(step) for step in re.findall(r"step (\d+)$", done.stdout, flags=re.MULTILINE)]
    assert steps == sorted(steps)
    assert steps[-1] < 24
