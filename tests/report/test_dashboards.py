"""W&B dashboards: what they show, read back from what would be sent, and what is said without a key."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from folders import AddCell

from retro_lab.config.compose import compose
from retro_lab.errors import ConfigurationError
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.records import ModelRecord
from retro_lab.tasks import dashboard as task

dashboards = pytest.importorskip("retro_lab.report.dashboards", reason="the extra dashboards is not installed")


def save(folder: Path, *overrides: str) -> None:
    task.run(compose(["task=dashboard", *overrides]), RunFolder(folder))


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What would be sent, on a machine where somebody is logged in."""
    sent: list[object] = []

    def keep(dashboard: object) -> SimpleNamespace:
        sent.append(dashboard)
        return SimpleNamespace(url="https://wandb.ai/me/retro_lab")

    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(default_entity="me"))
    monkeypatch.setattr(dashboards.workspaces.Workspace, "save", keep)
    monkeypatch.setattr(dashboards.reports.Report, "save", keep)
    return sent


def test_a_workspace_shows_every_curve_over_tokens(
    tmp_path: Path, saved: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, "logger.wandb.project=mine")
    [workspace] = saved
    assert (workspace.entity, workspace.project) == ("me", "mine")
    spec = json.loads(workspace._to_model().model_dump_json())["spec"]
    text = json.dumps(spec)
    for metric in ("train/loss", "train/tokens_per_second", "train/mfu", "train/gradient_norm", "bits_per_byte"):
        assert metric in text
    plots = [panel for section in workspace.sections for panel in section.panels if hasattr(panel, "x")]
    assert {plot.x for plot in plots} == {"tokens"}
    assert "https://wandb.ai/me/retro_lab" in capsys.readouterr().err


def test_a_report_of_a_sweep_has_its_table_and_its_runs(
    sweep_folder: Path, add_cell: AddCell, retro: ModelRecord, saved: list[object]
) -> None:
    add_cell(["retrieval.k=2", "+sweep=neighbors"], retro)
    save(sweep_folder)
    [report] = saved
    table, grid = (block for block in report.blocks if type(block).__name__ in ("MarkdownBlock", "PanelGrid"))
    assert "| missing" in table.text
    [runs] = grid.runsets
    assert sweep_folder.name in str(runs.filters)
    shown = {metric for panel in grid.panels if hasattr(panel, "metrics") for metric in panel.metrics}
    assert shown == {f"test/bits_per_byte/k={entry.k}" for entry in retro.evaluations}


def test_without_a_key_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ConfigurationError, match=r"W&B cannot save the dashboard \(.*\); run `wandb login` first"):
        save(tmp_path)


def test_without_wandb_there_is_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs the logger of W&B"):
        save(tmp_path, "logger=csv")
