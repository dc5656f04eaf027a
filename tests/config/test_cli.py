"""The command line with stub tasks: what is run where, exit codes, and what is left on disk."""

import errno
import json
import os
import signal
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from retro_lab import console
from retro_lab.errors import CorpusError, DivergenceError, PreemptedError, RunInUseError
from retro_lab.runs.command import typed_command
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks.config import RunConfig

Task = Callable[[RunConfig, RunFolder], object]
CommandLine = Callable[..., int]
StubTask = Callable[[str, Task], None]


class Recorder:
    """A task that notes down where it was run and with what k, and may fail."""

    def __init__(self, failures: dict[int, BaseException] | None = None) -> None:
        """Raise `failures` by k."""
        self.runs: list[tuple[str, int]] = []
        self.failures = failures or {}

    def __call__(self, config: RunConfig, folder: RunFolder) -> None:
        """Be the task's `run`."""
        self.runs.append((folder.path.relative_to(Path.cwd()).as_posix(), config.retrieval.k))
        if config.retrieval.k in self.failures:
            raise self.failures[config.retrieval.k]


def test_a_task_is_called_in_its_run_folder(command_line: CommandLine, stub_task: StubTask) -> None:
    task = Recorder()
    stub_task("train", task)
    assert command_line("task=train", "+experiment=quickstart", "retrieval.k=4") == 0
    assert task.runs == [("outputs/quickstart,retrieval.k=4", 4)]


def test_no_arguments_run_the_quickstart(command_line: CommandLine, stub_task: StubTask) -> None:
    task = Recorder()
    stub_task("compare", task)
    assert command_line() == 0
    assert task.runs == [("outputs/quickstart", 1)]


@pytest.mark.parametrize(
    ("arguments", "folders"),
    [
        (["retrieval.k=4"], ["quickstart,retrieval.k=4"]),
        (["name=my_run"], ["my_run"]),
        (["debug=fast"], ["quickstart,debug=fast"]),
        (["-m", "seed=1,2"], ["sweeps/quickstart,seed/seed=1", "sweeps/quickstart,seed/seed=2"]),
    ],
)
def test_without_an_experiment_overrides_apply_to_the_quickstart(
    arguments: list[str], folders: list[str], command_line: CommandLine, stub_task: StubTask
) -> None:
    lengths = []
    task = Recorder()
    stub_task("compare", lambda config, folder: (task(config, folder), lengths.append(config.schedule.tokens)))
    assert command_line(*arguments) in (0, 1)
    assert [folder for folder, _ in task.runs] == [f"outputs/{folder}" for folder in folders]
    assert max(lengths) < 1e7


@pytest.mark.parametrize("named", ["+experiment=mine", "+sweep=mine"])
def test_the_quickstart_is_not_put_below_a_users_own_files(
    named: str, command_line: CommandLine, stub_task: StubTask, write: Callable[[str, str], Path]
) -> None:
    write("experiments/mine.yaml", "# Mine.\nschedule: {tokens: 1e6}\n")
    write("sweeps/mine.yaml", "# Mine.\nschedule: {tokens: 1e6}\nhydra: {sweeper: {params: {seed: 1}}}\n")
    batches = []
    stub_task("compare", lambda config, folder: batches.append(config.data.batch_size))
    assert command_line(named) == 0
    assert batches == [256]


def test_a_task_without_a_run_writes_nothing(command_line: CommandLine, stub_task: StubTask, workspace: Path) -> None:
    stub_task("plan", lambda config, folder: None)
    assert command_line("task=plan", "size=7_5b") == 0
    assert list(workspace.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["retreival.k=4"], ["size=huge"], ["corpus=local"], ["+sweep=neighbors", "seed=x"], ["name=.."]]
)
def test_a_configuration_error_is_a_sentence_and_writes_nothing(
    arguments: list[str], command_line: CommandLine, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert list(workspace.iterdir()) == []


def test_an_error_of_the_user_is_a_sentence(
    command_line: CommandLine, stub_task: StubTask, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_task("train", Recorder({1: CorpusError("[a] text.jsonl has no field body.")}))
    assert command_line("task=train", "+experiment=quickstart") == 2
    assert capsys.readouterr().err == "error: [a] text.jsonl has no field body.\n"


def test_a_bug_keeps_its_traceback(command_line: CommandLine, stub_task: StubTask) -> None:
    stub_task("train", Recorder({1: ZeroDivisionError("a bug")}))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        command_line("task=train", "+experiment=quickstart")


def test_an_interruption_says_how_to_go_on(
    command_line: CommandLine, stub_task: StubTask, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_task("train", Recorder({1: KeyboardInterrupt()}))
    assert command_line("task=train", "+experiment=quickstart") == 130
    assert "same command" in capsys.readouterr().err


def test_a_sweep_runs_every_cell_in_its_folder(command_line: CommandLine, stub_task: StubTask) -> None:
    task = Recorder()
    stub_task("train", task)
    assert command_line("+sweep=neighbors", "seed=3", "retrieval.k=8,9") == 0
    assert task.runs == [(f"outputs/sweeps/neighbors,seed=3/retrieval.k={k}", k) for k in (8, 9)]


def test_a_cell_knows_the_command_as_it_was_typed(command_line: CommandLine, stub_task: StubTask) -> None:
    commands: list[str] = []
    stub_task("train", lambda config, folder: commands.append(typed_command()))
    assert command_line("+sweep=neighbors", "retrieval.k=8,9", "index.search=nprobe=3") == 0
    assert commands == ["python -m retro_lab +sweep=neighbors retrieval.k=8,9 index.search=nprobe=3"] * 2


def test_a_long_subject_does_not_run_into_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    console.status("decontamination", "building")
    console.status("tokens", "building")
    assert capsys.readouterr().err == "decontamination building\ntokens      building\n"


def test_cells_that_differ_in_their_evaluation_alone_have_their_own_folders(
    command_line: CommandLine, stub_task: StubTask
) -> None:
    task = Recorder()
    stub_task("train", task)
    assert command_line("-m", "task=train", "+experiment=quickstart", "evaluation.stride=64,128") == 0
    assert [folder.rpartition("/")[2] for folder, _ in task.runs] == ["evaluation.stride=64", "evaluation.stride=128"]


def test_a_failed_cell_does_not_hide_the_others(
    command_line: CommandLine, stub_task: StubTask, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Recorder({0: CorpusError("no text"), 1: ZeroDivisionError("a bug")})
    stub_task("train", task)
    assert command_line("+sweep=neighbors") == 1
    assert [k for _, k in task.runs] == [0, 1, 2, 4]
    cells = workspace / "outputs/sweeps/neighbors"
    errors = {path.parent.name: json.loads(path.read_text())["error"] for path in cells.glob("*/failed.json")}
    assert errors.keys() == {"retrieval.k=0", "retrieval.k=1"}
    assert errors["retrieval.k=0"] == "no text"
    assert "Traceback" in errors["retrieval.k=1"]
    assert "ZeroDivisionError: a bug" in errors["retrieval.k=1"]
    assert "error: no text" in capsys.readouterr().err

    task.failures.clear()
    assert command_line("+sweep=neighbors") == 0
    assert not list(cells.glob("*/failed.json"))


def test_an_interruption_ends_the_whole_sweep(command_line: CommandLine, stub_task: StubTask) -> None:
    task = Recorder({1: KeyboardInterrupt()})
    stub_task("train", task)
    assert command_line("+sweep=neighbors") == 130
    assert [k for _, k in task.runs] == [0, 1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_stop_is_no_failure_and_ends_the_whole_sweep(
    number: signal.Signals,
    command_line: CommandLine,
    stub_task: StubTask,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    task, before = Recorder(), signal.getsignal(number)

    def stopped_at_1(config: RunConfig, folder: RunFolder) -> None:
        task(config, folder)
        if config.retrieval.k == 1:
            os.kill(os.getpid(), number)

    stub_task("train", stopped_at_1)
    assert command_line("+sweep=neighbors") == PreemptedError.exit_code == 75
    assert [k for _, k in task.runs] == [0, 1]
    assert capsys.readouterr().err == f"Stopped by {number.name}; the same command goes on from here.\n"
    assert not list(workspace.rglob("failed.json"))
    assert signal.getsignal(number) == before


class Picky:
    """A class that free-form groups may name."""

    def __init__(self, **arguments: Any) -> None:
        """Refuse what it is told to refuse."""
        if "corpus" in arguments:
            raise CorpusError("no text")
        if "bug" in arguments:
            raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("{_target_: datetime.timedelta, hors: 1}", "hors"),
        ("{_target_: datetime.timdelta}", "timdelta"),
        (f"{{_target_: {__name__}.Picky, corpus: 1}}", "error: no text\n"),
    ],
)
def test_an_object_that_cannot_be_made_as_configured_is_an_error_of_the_user(
    entry: str, sentence: str, command_line: CommandLine, stub_task: StubTask, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_task("train", lambda config, folder: instantiate(config.logger))
    assert command_line("task=train", "+experiment=quickstart", "logger=none", f"+logger.own={entry}") == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert "Traceback" not in printed


def test_what_a_file_asks_for_in_vain_is_an_error_of_the_user(
    command_line: CommandLine,
    stub_task: StubTask,
    write: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub_task("train", lambda config, folder: instantiate(config.logger) and None)
    write(
        "experiments/mine.yaml", 'logger: {own: {_target_: builtins.dict, folder: "${hydra:runtime.cwd}${nowhere}"}}\n'
    )
    write("experiments/folder.yaml", 'hydra: {run: {dir: "${nowhere}"}}\n')
    for name in ("mine", "folder"):
        assert command_line("task=train", "logger=none", f"+experiment={name}") == 2
        said = capsys.readouterr().err
        assert "nowhere" in said
        assert said.count("\n") == 1


def test_the_configuration_cannot_be_replaced_as_a_whole(
    command_line: CommandLine, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line("+experiment=quickstart", "--config-name=foo") == 2
    assert "foo" in capsys.readouterr().err
    assert command_line("+experiment=quickstart", "--config-dir=nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["train", "report"])
def test_a_refused_run_leaves_no_folder_and_a_started_one_is_kept(
    task: str, command_line: CommandLine, stub_task: StubTask, workspace: Path
) -> None:
    stub_task(task, Recorder({1: CorpusError("no text")}))
    arguments = (f"task={task}", "+experiment=quickstart", "name=mine")
    assert command_line(*arguments) == 2
    assert list(workspace.iterdir()) == []
    result = workspace / "outputs/mine/baseline/result.json"
    result.parent.mkdir(parents=True)
    result.touch()
    assert command_line(*arguments) == 2
    assert result.is_file()


def test_the_version_is_the_laboratorys(command_line: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line("--version") == 0
    assert capsys.readouterr().out == f"retro_lab {version('retro_lab')}\n"


def test_a_bug_in_an_object_keeps_its_traceback(command_line: CommandLine, stub_task: StubTask) -> None:
    stub_task("train", lambda config, folder: instantiate(config.logger))
    with pytest.raises(InstantiationException, match="a bug"):
        command_line(
            "task=train", "+experiment=quickstart", "logger=none", f"+logger.own={{_target_: {__name__}.Picky, bug: 1}}"
        )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EROFS])
def test_a_disk_that_cannot_be_written_is_a_sentence(
    number: int, command_line: CommandLine, stub_task: StubTask, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_task("train", Recorder({1: OSError(number, os.strerror(number), "outputs/x/metrics.csv")}))
    assert command_line("task=train", "+experiment=quickstart") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "outputs/x/metrics.csv" in printed
    assert printed.count("\n") == 1


def test_outputs_that_hydra_cannot_make_are_a_sentence(
    command_line: CommandLine, stub_task: StubTask, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *arguments: Any, **settings: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    stub_task("train", Recorder())
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert command_line("task=train", "+experiment=quickstart") == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_working_directory_that_was_removed_is_a_sentence(
    command_line: CommandLine, workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = workspace / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert command_line("task=plan") == 2
    assert "working directory was removed" in capsys.readouterr().err


def test_training_that_diverged_has_an_exit_code_of_its_own(command_line: CommandLine, stub_task: StubTask) -> None:
    stub_task("train", Recorder({1: DivergenceError("Training diverged.")}))
    assert command_line("task=train", "+experiment=quickstart") == 1


def test_a_cell_that_another_command_runs_is_left_to_it(
    command_line: CommandLine, stub_task: StubTask, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_task("train", Recorder({2: RunInUseError("Another command is training there.")}))
    command_line("-m", "+experiment=quickstart", "task=train", "retrieval.k=2,4")
    assert "Another command" in capsys.readouterr().err
    assert not list(workspace.rglob("failed.json"))
