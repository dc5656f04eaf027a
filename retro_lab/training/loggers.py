"""Where a training run writes its curves: Lightning's loggers, made from the `logger` group."""

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger, WandbLogger

from retro_lab import console
from retro_lab.errors import ConfigurationError

WANDB_ID_NAME = "wandb_id.txt"


def build_loggers(nodes: Iterable[DictConfig], folder: Path) -> list[Logger]:
    """Make the loggers that `nodes` configure, of the model that is trained in `folder`.

    Raises:
        ConfigurationError: W&B is to upload and has no key.
    """
    return [_build(node, folder) for node in nodes]


def _build(node: DictConfig, folder: Path) -> Logger:
    if node._target_.endswith(WandbLogger.__name__):
        return _build_wandb(node, folder)
    logger: Logger = instantiate(node)
    return logger


def _build_wandb(node: DictConfig, folder: Path) -> Logger:
    """Make W&B's logger: the models of one run have names of their own, and a resumed one goes on in its W&B run."""
    import wandb

    try:
        # Lightning hands W&B a setting that W&B warns of, before W&B has read that it should be silent.
        wandb.setup(settings=wandb.Settings(silent=True, mode="offline" if node.offline else "online"))
        name = "/".join(filter(None, [node.get("name"), folder.name]))
        logger: Logger = instantiate(OmegaConf.merge(node, {"name": name}), version=_wandb_id(folder))
    except wandb.errors.UsageError as error:
        raise ConfigurationError(
            f"W&B cannot upload ({error}); log in with `wandb login`, or set logger.wandb.offline=true."
        ) from error
    return logger


def _wandb_id(folder: Path) -> str | None:
    """Return the id of the folder's W&B run, made and noted down by rank 0 at the first attempt."""
    path = folder / WANDB_ID_NAME
    if not path.is_file() and console.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8") if path.is_file() else None


def finish_loggers(loggers: Iterable[Any]) -> None:
    """Close W&B's run: without it the next job of a multirun would go on in this one's."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.finalize("success")
            wandb.finish()
