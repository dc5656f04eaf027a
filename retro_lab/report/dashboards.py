"""W&B dashboards as code: a workspace for all runs of a project, and a report for a sweep. Saves nothing itself.

The package `wandb-workspaces` writes them (the extra `dashboards`); `task=dashboard` saves them.
"""

from wandb_workspaces import expr, workspaces
from wandb_workspaces.reports import v2 as reports

from retro_lab.report.tables import Table
from retro_lab.runs.naming import TOKENS
from retro_lab.runs.sweeps import SweepRecord

CURVES = reports.LinePlot(
    title="Held-out bits per byte", x=TOKENS, metric_regex=r"validation/bits_per_byte/.*", title_x="training tokens"
)
TRAINING = ("train/loss", "train/learning_rate", "train/gradient_norm")
SPEED = ("train/tokens_per_second", "train/mfu")


def project_workspace(entity: str, project: str) -> workspaces.Workspace:
    """Return a view of all runs of a project: held-out curves, training, speed, and what tells the runs apart."""
    sections = {
        "Held-out text": [CURVES],
        "Training": [_over_tokens(metric) for metric in TRAINING],
        "Speed": [_over_tokens(metric) for metric in SPEED],
        "Settings that differ": [reports.RunComparer(diff_only="split")],
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="retro_lab",
        sections=[
            workspaces.Section(name=name, panels=panels, is_open=name != "Settings that differ")
            for name, panels in sections.items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=TOKENS),
    )


def sweep_report(entity: str, project: str, sweep: SweepRecord, table: Table) -> reports.Report:
    """Return a report on a sweep: its table, the curves of its runs, and their final scores side by side.

    Args:
        entity: User or team of W&B.
        project: Project that the sweep's runs were logged to.
        sweep: Of which the W&B runs form the group of the same name.
        table: Of the sweep.
    """
    models = [model for cell in sweep.cells if cell.run for model in cell.run.models]
    scores = dict.fromkeys(entry.metric("bits_per_byte") for model in models for entry in model.evaluations)
    runs = reports.Runset(entity=entity, project=project, name=sweep.name, filters=[expr.Metric("Group") == sweep.name])
    bars = [reports.BarPlot(title=metric, metrics=[metric]) for metric in scores]
    return reports.Report(
        entity=entity,
        project=project,
        title=sweep.name,
        description=f"{len(sweep.with_status('done'))} of {len(sweep.cells)} cells are done.",
        width="fluid",
        blocks=[
            reports.H1("Results"),
            reports.MarkdownBlock(table.to_markdown()),
            reports.H1("Runs"),
            reports.PanelGrid(runsets=[runs], panels=[CURVES, *bars, *(_over_tokens(metric) for metric in TRAINING)]),
        ],
    )


def _over_tokens(metric: str) -> reports.LinePlot:
    return reports.LinePlot(title=metric.partition("/")[2].replace("_", " "), x=TOKENS, y=[metric])
