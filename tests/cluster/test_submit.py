"""What `retro-lab submit` and `status` do where there is no SLURM, and what the frozen configuration keeps."""

import sys
from pathlib import Path

import pytest
import yaml
from in_process import run

from retro_lab import slurm
from retro_lab.cluster.files import JobFiles, JobState
from retro_lab.cluster.look import standing
from retro_lab.config.check import as_written, typed
from retro_lab.config.frozen import freeze, thaw
from retro_lab.config.session import session


@pytest.fixture(autouse=True)
def without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("RETRO_LAB_COMMAND", "")
    return tmp_path


def test_a_dry_run_prints_scripts_and_writes_nothing(
    without_slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2"]
    site = [
        "cluster.time=24:00:00",
        "cluster.mem=64G",
        "cluster.options=['--qos=high']",
        "cluster.setup=[module load cuda]",
    ]
    assert run(["submit", "--dry-run", "task=train", *shape, *site], monkeypatch) == 0
    printed = capsys.readouterr().out
    wanted = ["nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=8", "time=24:00:00", "mem=64G",
              "qos=high", "signal=USR2@120", "requeue"]  # fmt: skip
    assert {f"#SBATCH --{option}" for option in wanted} <= set(printed.splitlines())
    assert printed.index("module load cuda") < printed.index(f"{sys.executable} -m retro_lab.cluster.job")
    assert list(without_slurm.iterdir()) == []


def test_a_sweep_is_one_array_of_the_cells_and_not_larger_than_slurm_allows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "DEFAULT_MAX_ARRAY_SIZE", 3)
    assert run(["submit", "--dry-run", "+sweep=neighbors", "cluster.array_parallelism=2"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "--array" in line] == [
        "#SBATCH --array=0-2%2",
        "#SBATCH --array=0-0%2",
    ]
    cells = [line.strip() for line in printed.splitlines() if line.startswith("  outputs/")]
    assert cells == [f"outputs/sweeps/neighbors/retrieval.k={k}" for k in (0, 1, 2, 4)]


def test_cells_that_ask_for_other_resources_are_other_arrays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["submit", "--dry-run", "-m", "task=train", "trainer.devices=1,2", "seed=0,1"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "ntasks" in line] == [
        f"#SBATCH --ntasks-per-node={n}" for n in (1, 2)
    ]


def test_a_divided_build_is_one_array_of_equal_jobs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    divided = ["task=build", "name=mine", "build.dispatcher=slurm", "build.workers=3", "trainer.devices=2"]
    assert run(["submit", "--dry-run", *divided], monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    wanted = ["array=0-2", "nodes=1", "ntasks-per-node=2", "requeue", "job-name=build-mine"]
    assert {f"#SBATCH --{option}" for option in wanted} <= set(lines)
    folders = [line.strip() for line in lines if line.startswith("  outputs/")]
    assert folders == [f"outputs/build-mine/worker_00{number}" for number in range(3)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["submit"], "There is no sbatch on this machine"),
        (["submit", "retrieval.kk=2"], "did you mean retrieval.k"),
        (["submit", "+sweep=neighbors", "seed=x"], "seed takes int"),
        (["submit", "--cfg", "job"], "submit takes overrides"),
        (["submit", "trainer.devices=-1"], "SLURM needs trainer.devices as a number, for example 8; got -1"),
        (["submit", "cluster.time=soon"], "cluster.time=soon is not a duration"),
        (["submit", "cluster.requeues=-1"], "cluster.requeues must be 0 or more"),
        (["submit", "task=build", "build.dispatcher=slurm"], "needs the number of jobs: build.workers=8"),
        (["submit", "build.dispatcher=slurm", "build.workers=2"], "is for task=build, not for task=compare"),
        (["submit", "-m", "task=build", "build.dispatcher=slurm", "seed=0,1"], "and not those of a sweep"),
        (["task=build", "build.dispatcher=slurm"], "jobs that `retro-lab submit task=build` submits"),
        (["hydra/launcher=slurm"], "`retro-lab submit`"),
        (["status"], "No job was submitted into outputs"),
        (["status", "--all"], "status takes one folder"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, without_slurm: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(arguments, monkeypatch) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert list(without_slurm.iterdir()) == []


def test_a_frozen_configuration_is_the_same_without_its_files_and_holds_no_secret(
    without_slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_PROJECT", "hidden")
    mixture = "corpus=massivetext_like"
    overrides = [
        "+experiment=quickstart",
        mixture,
        "logger=wandb",
        "logger.wandb.project=${oc.env:MY_PROJECT}",
        "+corpus@corpora.c4=c4",
    ]
    with session() as assemble:
        composed = assemble(overrides)
        wanted = typed(composed, resolve_all=False)
        text = yaml.safe_dump(freeze(composed, Path("outputs/mine")))
    assert "hidden" not in text
    monkeypatch.setattr("retro_lab.config.session.config_root", lambda folder: without_slurm / "gone")
    found = thaw(yaml.safe_load(text))
    again = typed(found)
    assert again.logger["wandb"]["project"] == "hidden"
    assert "run_name" not in str(as_written(found)["logger"])  # what looks into the files again is resolved
    for name in (
        "task",
        "size",
        "model",
        "corpus",
        "corpora",
        "tokenizer",
        "embedder",
        "trainer",
        "schedule",
        "cluster",
    ):
        assert getattr(again, name) == getattr(wanted, name), name


@pytest.mark.parametrize(
    ("state", "queue", "status"),
    [
        (JobState(), {"7": "PENDING"}, "waiting"),
        (JobState(), {"7": "RUNNING"}, "running"),
        (JobState(status="running", attempts=1, job="7"), {"7": "RUNNING"}, "running"),
        (JobState(status="waiting", attempts=1, job="7"), {"7": "RUNNING"}, "waiting"),  # about to be queued again
        (JobState(status="running", attempts=1, job="7"), {"7": "PENDING"}, "waiting"),  # SLURM queued it again
        (JobState(status="done", attempts=1, job="7"), {"7": "COMPLETING"}, "done"),
        (JobState(status="failed", attempts=1, job="7", error="a\nb\n"), {}, "failed"),
        (JobState(status="failed", attempts=1, job="7", error="b"), {"7": "PENDING"}, "waiting"),
        (JobState(status="running", attempts=1, job="7"), {}, "failed"),  # killed without a word
        (JobState(), {}, "failed"),  # canceled before it began
        (JobState(status="running", attempts=1, job="7"), None, "running"),
    ],
)
def test_a_job_stands_as_its_files_and_the_queue_say(
    state: JobState, queue: dict[str, str] | None, status: str, tmp_path: Path
) -> None:
    files = JobFiles(tmp_path)
    assert standing(files, queue) is None
    files.submit({"command": "", "sweep": False, "requeues": 1, "config": {}})
    files.note_id("7")
    if state != JobState():
        files.note_state(state)
    found = standing(files, queue)
    assert found is not None
    assert found.status == status
    if state.error and status == "failed":
        assert found.error == "b"


def test_the_first_rank_to_fail_says_why(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    files.folder.mkdir()
    files.note_outcome("failed", "the cause")
    files.note_outcome("failed", "Connection closed by peer")
    assert files.outcome["error"] == "the cause"
    assert [path.name for path in files.folder.iterdir()] == ["outcome.json"]
