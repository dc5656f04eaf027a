"""`task=dashboard`: save the W&B workspace of a run's project, or the W&B report of a sweep."""

from typing import Any

from retro_lab import console
from retro_lab.errors import ConfigurationError
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.sweeps import is_sweep, load_sweep
from retro_lab.tasks.config import RunConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Save the dashboard to W&B and print its address; only rank 0 does so.

    Raises:
        ConfigurationError: The extra `dashboards` is not installed, no logger is W&B's, or W&B has no key or refuses.
    """
    if not console.is_main_process():
        return
    wandb_logger: dict[str, Any] = next(
        (node for node in (config.logger or {}).values() if node and str(node["_target_"]).endswith("WandbLogger")), {}
    )
    if not wandb_logger:
        raise ConfigurationError("task=dashboard needs the logger of W&B; add logger=wandb, or leave logger=default.")
    try:
        from retro_lab.report import dashboards
    except ImportError as error:
        raise ConfigurationError(
            "task=dashboard needs the extra `dashboards`: pip install 'retro_lab[dashboards]'."
        ) from error
    import wandb

    project = str(wandb_logger["project"])
    try:
        entity = str(wandb_logger.get("entity") or wandb.Api().default_entity)
        if is_sweep(folder.path):
            from retro_lab.report.sweep_tables import sweep_table

            sweep = load_sweep(folder.path)
            saved = dashboards.sweep_report(entity, project, sweep, sweep_table(sweep)).save()
        else:
            saved = dashboards.project_workspace(entity, project).save()
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigurationError(f"W&B cannot save the dashboard ({reason}); run `wandb login` first.") from error
    console.status("dashboard", str(saved.url))
