"""What a user sees: the report task, and the end of a sweep."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from folders import AddCell, write_grid
from omegaconf import OmegaConf

from retro_lab.config.compose import compose
from retro_lab.config.sweeps import SweepCallback
from retro_lab.errors import RetroLabError
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.records import ModelRecord
from retro_lab.tasks import report as task


def report_on(folder: Path, *overrides: str) -> None:
    task.run(compose(["task=report"]), RunFolder(folder, overrides))


def end_of_sweep(folder: Path) -> None:
    SweepCallback().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}), config_name="config")


def test_the_task_prints_the_table_and_where_the_page_is(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_on(run_folder)
    printed = capsys.readouterr()
    assert "RETRO[Off]" in printed.out
    assert "+5.0%" in printed.out
    assert str(run_folder / "report" / "index.html") in printed.err


def test_the_task_reports_a_sweep_folder(
    sweep_folder: Path,
    add_cell: AddCell,
    retro: ModelRecord,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_cell(["retrieval.k=2", "+sweep=neighbors", "seed=3"], retro)
    report_on(sweep_folder)
    assert capsys.readouterr().out.count("missing") == 3
    assert (sweep_folder / "report" / "index.html").is_file()


@pytest.mark.parametrize("sweep", [True, False])
def test_nothing_to_report_names_the_folder_and_the_command(tmp_path: Path, sweep: bool) -> None:
    if sweep:
        write_grid(tmp_path, {"k": ["1"]})
    command = re.escape("python -m retro_lab '+experiment=my run' seed=3") + "$"
    with pytest.raises(RetroLabError, match=command) as caught:
        report_on(tmp_path, "task=report", "+experiment=my run", "seed=3")
    assert str(tmp_path) in str(caught.value)


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    (tmp_path / "failed.json").write_text('{"error": "no memory"}')
    with pytest.raises(RetroLabError, match="no memory"):
        report_on(tmp_path)


def test_a_good_sweep_ends_well(
    sweep_folder: Path, add_cell: AddCell, retro: ModelRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    add_cell(["retrieval.k=2", "+sweep=neighbors", "seed=3"], retro)
    end_of_sweep(sweep_folder)
    assert "done" in capsys.readouterr().out


def test_a_failed_cell_is_shown_and_fails_the_command(
    sweep_folder: Path, add_cell: AddCell, capsys: pytest.CaptureFixture[str]
) -> None:
    add_cell(["retrieval.k=2", "+sweep=neighbors", "seed=3"], error="Traceback\nValueError: no [bold]memory")
    with pytest.raises(SystemExit) as caught:
        end_of_sweep(sweep_folder)
    printed = capsys.readouterr()
    assert caught.value.code == 1
    assert "failed" in printed.out
    assert "ValueError: no [bold]memory" in printed.err


def test_a_sweep_that_trains_nothing_is_silent(sweep_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end_of_sweep(sweep_folder)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [RetroLabError("disk full"), ZeroDivisionError("a bug")])
def test_a_report_that_cannot_be_made_fails_the_command(
    sweep_folder: Path,
    add_cell: AddCell,
    retro: ModelRecord,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(folder: Path) -> None:
        raise error

    add_cell(["retrieval.k=2"], retro)
    monkeypatch.setattr("retro_lab.report.build.write_sweep_report", fail)
    with pytest.raises(SystemExit):
        end_of_sweep(sweep_folder)
    assert str(error) in capsys.readouterr().err


APP = """
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from retro_lab.config.resolvers import register
from retro_lab.runs.folder import RunFolder

@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(config):
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.k == 1:
        RunFolder(folder, tuple(HydraConfig.get().overrides.task)).note_failure("no memory")

from hydra.core.config_store import ConfigStore
ConfigStore.instance().store("config", {
    "k": 0,
    "hydra": {
        "callbacks": {"report": {"_target_": "retro_lab.config.sweeps.SweepCallback"}},
        "sweeper": {"params": {"k": "0,1,2"}},
        "sweep": {"dir": "sweep", "subdir": "${cell_name:}"},
    },
})
register()
main()
"""


def test_hydra_calls_it_at_the_end_of_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    root = Path(task.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "app.py", "--multirun"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("missing") == 2
    assert "no memory" in done.stderr
    assert (tmp_path / "sweep" / "report" / "index.html").is_file()


def test_the_callback_loads_no_drawing_library() -> None:
    code = "import sys, retro_lab.config.sweeps; sys.exit('matplotlib' in sys.modules)"
    root = Path(task.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
