"""Lightning's loggers, which record the curves of a training run, built from the `logger` group."""

import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from pytorch_lightning.loggers import Logger, WandbLogger

from retro_lab import console
from retro_lab.errors import ConfigurationError, PreemptedError
from retro_lab.runs.naming import TOKENS
from retro_lab.runs.records import ModelRecord
from retro_lab.training.trackio_logger import TrackioLogger

WANDB_ID_NAME = "wandb_id.txt"
UNTOLD = ("logger", "callbacks", "paths", "corpora")
"""Groups of settings that are not logged."""


def build_loggers(nodes: Iterable[Mapping[str, Any]], folder: Path) -> list[Logger]:
    """Build the loggers that `nodes` configure, for the model that is trained in `folder`.

    If W&B cannot be reached or refuses the upload, training continues: a status line says so, and the curves are kept
    offline, for `wandb sync` to upload later. W&B never asks for a key.

    Raises:
        ConfigurationError: W&B cannot log even offline, for example because it does not allow the project's name.
    """
    nodes = list(nodes)
    if any(_is_wandb(node) for node in nodes):
        import wandb

        if wandb.run is not None:  # left open by a failed job of this multirun; this job would continue it
            wandb.finish(exit_code=1)
    return [_build_wandb(node, folder) if _is_wandb(node) else _build_other(node, folder) for node in nodes]


def reopen_loggers(nodes: Iterable[Mapping[str, Any]], folder: Path) -> list[Logger]:
    """Build those loggers again that can continue the run of a trained model: Trackio, and W&B if it has a run."""
    known = (folder / WANDB_ID_NAME).is_file()
    return build_loggers((node for node in nodes if _is_trackio(node) or (known and _is_wandb(node))), folder)


def describe_run(loggers: Iterable[Logger], settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Tell loggers what is trained.

    Args:
        loggers: Of the run.
        settings: The whole configuration as nested dictionaries. What only says where and how to log is left out, since
            a tracker's settings can hold keys.
        facts: What the configuration does not say, such as the number of parameters; under the name `run`.
    """
    told = {name: value for name, value in settings.items() if name not in UNTOLD} | {"run": facts}
    plain = json.loads(json.dumps(told, default=str))
    for logger in loggers:
        logger.log_hyperparams(plain)


def log_scores(loggers: Iterable[Logger], record: ModelRecord) -> None:
    """Log the final scores on each text with each k, and of the kNN-LM: bits per byte, perplexity and any accuracy."""
    scores = {TOKENS: float(record.tokens)}
    for entry in reversed(record.evaluations):  # of several of one text and k, the first is the latest requested
        scores[entry.metric("bits_per_byte")] = entry.bits_per_byte
        scores[entry.metric("perplexity")] = entry.perplexity
        if entry.accuracy is not None:
            scores[entry.metric("accuracy")] = entry.accuracy
    for logger in loggers:
        logger.log_metrics(scores, step=record.steps)
        logger.save()


def finish_loggers(loggers: Iterable[Any], preempted: bool = False) -> None:
    """Close the trackers' runs, of whole or `preempted` trainings; the next job of a multirun would continue them."""
    for logger in loggers:
        if isinstance(logger, TrackioLogger):
            logger.finish()
        if isinstance(logger, WandbLogger):
            import wandb

            if not preempted:
                logger.finalize("success")
            try:
                if preempted and wandb.run is not None:
                    wandb.run.mark_preempting()
                wandb.finish(exit_code=PreemptedError.exit_code if preempted else 0)
            except Exception as error:  # a tracker's error is never the run's
                _say_failed(error)


def _build_other(node: Mapping[str, Any], folder: Path) -> Logger:
    named = {"name": _name(node, folder)} if _is_trackio(node) else {}
    logger: Logger = instantiate(node, **named)
    return logger


def _name(node: Mapping[str, Any], folder: Path) -> str:
    """Return the name of a model's run in a tracker: each model of a run has one of its own."""
    return "/".join(filter(None, [node.get("name"), folder.name]))


def _is_wandb(node: Mapping[str, Any]) -> bool:
    return bool(str(node["_target_"]).endswith(WandbLogger.__name__))


def _is_trackio(node: Mapping[str, Any]) -> bool:
    return bool(str(node["_target_"]).endswith(TrackioLogger.__name__))


def _build_wandb(node: Mapping[str, Any], folder: Path) -> Logger:
    """Build W&B's logger, offline if asked to or if nothing else works."""
    import wandb

    if not node.get("offline"):
        try:
            return _start_wandb(node, folder, offline=False)
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            console.status("W&B", f"cannot upload ({reason}); continuing offline, `wandb sync` uploads later")
    try:
        return _start_wandb(node, folder, offline=True)
    except wandb.errors.Error as error:
        raise ConfigurationError(
            f"W&B cannot log ({error}); fix logger.wandb, or leave it out with logger=csv."
        ) from error


def _start_wandb(node: Mapping[str, Any], folder: Path, offline: bool) -> Logger:
    """Build W&B's logger and, on rank 0, start its W&B run now: an error later would interrupt the training.

    Each model of a run has a W&B run of its own, and a resumed model continues its W&B run.

    Raises:
        wandb.errors.Error: W&B has no key, cannot be reached, or refuses.
    """
    import wandb

    # Otherwise Lightning passes W&B a setting that W&B warns about, before W&B has read that it should be silent.
    wandb.setup(settings=wandb.Settings(silent=True, mode="offline" if offline else "online"))
    changes = {"offline": True, "log_model": False} if offline else {}  # Lightning refuses to keep models offline
    logger: WandbLogger = instantiate(node, name=_name(node, folder), version=_wandb_id(folder), **changes)
    if console.is_main_process():
        if not offline and not wandb.login(prompt=False, verify=True):
            raise wandb.errors.UsageError("there is no key; `wandb login` asks for one")
        logger.experiment.define_metric(TOKENS)
        logger.experiment.define_metric("*", step_metric=TOKENS, step_sync=True)  # in place of Lightning's steps
    _outlive(logger)
    return logger


def _wandb_id(folder: Path) -> str | None:
    """Return the id of the folder's W&B run, which rank 0 generates and writes down at the first attempt."""
    path = folder / WANDB_ID_NAME
    if not path.is_file() and console.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _outlive(logger: Logger) -> None:
    """Have an error of a tracker, such as a lost connection, end its logging and never the training."""
    failed = False

    def tolerant(method: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            nonlocal failed
            try:
                if not failed:
                    method(*args, **kwargs)
            except Exception as error:
                failed = True
                _say_failed(error)

        return call

    for name in ("log_hyperparams", "log_metrics", "save", "finalize"):
        setattr(logger, name, tolerant(getattr(logger, name)))


def _say_failed(error: Exception) -> None:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    console.status("W&B", f"stopped logging ({reason}); what it has so far is kept")
