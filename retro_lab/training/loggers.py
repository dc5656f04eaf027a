"""Where a training run writes its curves: Lightning's loggers, made from the `logger` group."""

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from pytorch_lightning.loggers import Logger, WandbLogger

from retro_lab import console
from retro_lab.errors import ConfigurationError

WANDB_ID_NAME = "wandb_id.txt"


def build_loggers(nodes: Iterable[Mapping[str, Any]], folder: Path) -> list[Logger]:
    """Make the loggers that `nodes` configure, of the model that is trained in `folder`.

    A W&B that cannot be reached or that refuses the upload costs no training: a line says so, and the curves are kept
    offline, for `wandb sync` to upload later. W&B never asks for a key.

    Raises:
        ConfigurationError: W&B cannot log even offline, with a project's name that it does not allow, say.
    """
    nodes = list(nodes)
    if any(_is_wandb(node) for node in nodes):
        import wandb

        if wandb.run is not None:  # that of a job of this multirun that failed, and this one would go on in it
            wandb.finish(exit_code=1)
    return [_build_wandb(node, folder) if _is_wandb(node) else instantiate(node) for node in nodes]


def _is_wandb(node: Mapping[str, Any]) -> bool:
    return bool(str(node["_target_"]).endswith(WandbLogger.__name__))


def _build_wandb(node: Mapping[str, Any], folder: Path) -> Logger:
    """Make W&B's logger, offline if that is wanted or nothing else works."""
    import wandb

    if not node.get("offline"):
        try:
            return _start_wandb(node, folder, offline=False)
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            console.status("W&B", f"cannot upload ({reason}); going on offline, `wandb sync` uploads later")
    try:
        return _start_wandb(node, folder, offline=True)
    except wandb.errors.Error as error:
        raise ConfigurationError(
            f"W&B cannot log ({error}); mend logger.wandb, or leave it out with logger=csv."
        ) from error


def _start_wandb(node: Mapping[str, Any], folder: Path, offline: bool) -> Logger:
    """Make W&B's logger and, on rank 0, its W&B run now: later, an error would end the training in its middle.

    The models of one run have names of their own, and a resumed one goes on in its W&B run.

    Raises:
        wandb.errors.Error: W&B has no key, cannot be reached, or refuses.
    """
    import wandb

    # Lightning hands W&B a setting that W&B warns of, before W&B has read that it should be silent.
    wandb.setup(settings=wandb.Settings(silent=True, mode="offline" if offline else "online"))
    changes = {"offline": True, "log_model": False} if offline else {}  # Lightning refuses to keep models offline
    name = "/".join(filter(None, [node.get("name"), folder.name]))
    logger: WandbLogger = instantiate(node, name=name, version=_wandb_id(folder), **changes)
    if console.is_main_process():
        if not offline and not wandb.login(prompt=False, verify=True):
            raise wandb.errors.UsageError("there is no key; `wandb login` asks for one")
        logger.experiment  # noqa: B018
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
