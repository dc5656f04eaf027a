"""One training run: fit with Lightning, resume where the last attempt stopped, and record the curve."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from retro_lab import preemption
from retro_lab.errors import ConfigurationError, RetroLabError
from retro_lab.evaluation.scoring import ScoringModule, check_finite
from retro_lab.model.initialization import is_cca_output
from retro_lab.model.language_model import LanguageModel
from retro_lab.runs.records import CurvePoint
from retro_lab.runs.trained_model import read_weights
from retro_lab.training.checkpoints import CHECKPOINT, read_checkpoint, resumable, sealed_file
from retro_lab.training.data import STALLED_SECONDS
from retro_lab.training.module import RetroModule

NO_BATCH = "DataLoader timed out"
"""Beginning of torch's error when its workers take too long."""


class ValidationCurve(pl.Callback):
    """Records bits per byte against training tokens; checkpoints hold it, so a resumed run has the whole curve."""

    def __init__(self, tokens_per_step: int) -> None:
        """Count `tokens_per_step` tokens for each optimizer step."""
        self.tokens_per_step = tokens_per_step
        self.points: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score a step that the last attempt did not: a step's checkpoint is written before the step is scored."""
        batches = trainer.global_step * trainer.accumulate_grad_batches
        due = trainer.global_step > 0 and batches % trainer.val_check_interval == 0
        if due and not self.holds(trainer.global_step):
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def holds(self, step: int) -> bool:
        """Return whether there is a point for a step."""
        return any(point["tokens"] == step * self.tokens_per_step for point in self.points)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a point for each k that was scored.

        Raises:
            DivergenceError: A score is not finite.
        """
        assert isinstance(pl_module, ScoringModule)
        tokens = trainer.global_step * self.tokens_per_step
        if self.holds(trainer.global_step):
            return
        check_finite(pl_module)
        for k, score in pl_module.measured():
            self.points.append({"tokens": tokens, "k": k, "bits_per_byte": score.compute().bits_per_byte})

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """The points so far."""
        return tuple(CurvePoint(**point) for point in self.points)

    def state_dict(self) -> dict[str, Any]:
        """Return the points for the checkpoint."""
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the points from a checkpoint."""
        self.points = list(state_dict["points"])


class TrainingClock(pl.Callback):
    """Counts the seconds of a training run over all its attempts, as far as their checkpoints were kept."""

    def __init__(self) -> None:
        """Start at the first attempt."""
        self._before, self._started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return self._before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds for the checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the seconds of a checkpoint."""
        self._before = state_dict["seconds"]


def baseline_weights(model: LanguageModel, start: Path) -> Mapping[str, torch.Tensor]:
    """Read a trained baseline's weights, to start a RETRO from, which has the baseline's loss at first.

    Of encoder and chunked cross-attention, only the last products of the latter are among them: they are zero.

    Args:
        model: The RETRO, which may be on the meta device.
        start: The baseline's folder, or a checkpoint of its training.

    Raises:
        ArtifactError: There is no such baseline, or it is damaged.
        ConfigurationError: The baseline has other shapes.
    """
    weights = _checkpoint_weights(start) if sealed_file(start) else read_weights(start)
    own = model.state_dict()
    for name in weights.keys() & own.keys():
        if weights[name].shape != own[name].shape:
            raise ConfigurationError(
                f"init.checkpoint={start} holds a model of another size ({name} is "
                f"{list(weights[name].shape)} there and {list(own[name].shape)} here)."
            )
    fresh = {name for name, _ in model.retrieval_parameters()}
    if weights.keys() != own.keys() - fresh:
        raise ConfigurationError(
            f"init.checkpoint={start} is not a baseline of this size and model: RETROfit needs exactly the decoder's "
            "weights."
        )
    return {**weights, **{name: torch.zeros_like(own[name], device="cpu") for name in fresh if is_cca_output(name)}}


def _checkpoint_weights(checkpoint: Path) -> Mapping[str, torch.Tensor]:
    """Read the model's weights from a checkpoint of `RetroModule`, without falling back to the previous checkpoint."""
    state = read_checkpoint(checkpoint)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def fit(trainer: pl.Trainer, module: RetroModule, data: pl.LightningDataModule, folder: Path) -> None:
    """Train to the end, from the last checkpoint in `folder` if there is one.

    Raises:
        KeyboardInterrupt: The user interrupted it; Lightning itself would exit the process.
        PreemptedError: A signal asked it to stop.
        RetroLabError: The workers delivered no batch for too long.
    """
    try:
        with preemption.watched():
            trainer.fit(module, datamodule=data, ckpt_path=resumable(folder), weights_only=True)
    except RuntimeError as error:
        if not str(error).startswith(NO_BATCH):
            raise
        raise RetroLabError(
            f"No batch arrived for {STALLED_SECONDS:,} seconds: check that the storage of paths.artifacts answers, and "
            "run the same command again, which resumes; data.workers=0 reads in the training process."
        ) from error
    except SystemExit as stop:
        if trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise
    if not _curve(trainer).holds(trainer.global_step):
        trainer.save_checkpoint(folder / CHECKPOINT)  # what stops the command from here on undoes no step
        trainer.validate(module, datamodule=data, verbose=False)
    trainer.save_checkpoint(folder / CHECKPOINT)


def stopped_by(trainer: pl.Trainer) -> str | None:
    """Name the callback that stopped a training run before its last step; None if it ran to the end."""
    if trainer.global_step >= trainer.max_steps:
        return None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            return type(callback).__name__
        if isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0:
            return "trainer.max_time"
    return "a callback"


def _curve(trainer: pl.Trainer) -> ValidationCurve:
    return next(callback for callback in trainer.callbacks if isinstance(callback, ValidationCurve))  # type: ignore[attr-defined]
