"""One training run: assemble Lightning's parts, resume where the last attempt stopped, keep the curve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from retro_lab.errors import ConfigurationError
from retro_lab.model.retro import RetroModel
from retro_lab.report.records import CurvePoint
from retro_lab.training.checkpoints import CHECKPOINT, read_checkpoint, resumable
from retro_lab.training.module import RetroModule


class ValidationCurve(pl.Callback):
    """Keeps bits per byte against training tokens; saved in checkpoints, so that a resumed run has the whole curve."""

    def __init__(self, tokens_per_step: int) -> None:
        """Count `tokens_per_step` tokens for each optimizer step."""
        self.tokens_per_step = tokens_per_step
        self.points: list[dict[str, Any]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a point for each k that was scored."""
        assert isinstance(pl_module, RetroModule)
        tokens = trainer.global_step * self.tokens_per_step
        if self.points and self.points[-1]["tokens"] == tokens:
            return
        for neighbors, score in pl_module.measured():
            self.points.append(
                {"tokens": tokens, "neighbors": neighbors, "bits_per_byte": score.compute().bits_per_byte}
            )

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """The points so far."""
        return tuple(CurvePoint(**point) for point in self.points)

    def state_dict(self) -> dict[str, Any]:
        """Return the points for the checkpoint."""
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the points from a checkpoint."""
        self.points = list(state_dict["points"])


def model_weights(checkpoint: Path) -> Mapping[str, torch.Tensor]:
    """Read the model's weights from a checkpoint of `RetroModule`, never those of the one before in its place.

    Raises:
        ArtifactError: The file is not there or is not such a checkpoint.
    """
    state = read_checkpoint(checkpoint)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def load_baseline_weights(model: RetroModel, checkpoint: Path) -> None:
    """Give a RETRO the weights of a trained baseline; encoder and chunked cross-attention stay as initialized.

    Raises:
        ConfigurationError: The checkpoint is of a model with other shapes.
    """
    try:
        missing, unexpected = model.load_state_dict(model_weights(checkpoint), strict=False)
    except RuntimeError as error:
        raise ConfigurationError(
            f"init.checkpoint={checkpoint} holds a model of another size ({str(error).splitlines()[1].strip()})"
        ) from error
    fresh = {name for name, _ in model.retrieval_parameters()}
    if unexpected or set(missing) != fresh:
        raise ConfigurationError(
            f"init.checkpoint={checkpoint} is not a baseline of this size and model: retrofit wants the decoder's "
            "weights and no others."
        )


def fit(trainer: pl.Trainer, module: RetroModule, data: pl.LightningDataModule, folder: Path) -> None:
    """Train to the end, from the last checkpoint in `folder` if there is one.

    Raises:
        KeyboardInterrupt: The user stopped it; Lightning itself would end the process.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resumable(folder), weights_only=True)
    except SystemExit as stop:
        if trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise
    if (
        not (curve := _curve(trainer)).points
        or curve.points[-1]["tokens"] != trainer.global_step * curve.tokens_per_step
    ):
        trainer.validate(module, datamodule=data, verbose=False)
    trainer.save_checkpoint(folder / CHECKPOINT)


def _curve(trainer: pl.Trainer) -> ValidationCurve:
    return next(callback for callback in trainer.callbacks if isinstance(callback, ValidationCurve))  # type: ignore[attr-defined]
