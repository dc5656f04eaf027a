"""A training run stops where it is asked to, and goes on, at the boundary between two optimizer steps."""

import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from retro_lab import console, preemption
from retro_lab.errors import PreemptedError
from retro_lab.training.loggers import finish_loggers


class StopWhenAsked(Checkpoint):
    """Saves a checkpoint and stops at the end of the step in which a signal asked any rank to stop.

    Lightning runs callbacks that save checkpoints after all others, so those have seen the step as well.

    All ranks must stop at the same step, or one of them would wait for the others forever, so they agree at every step.
    That costs a reduction of one number, for which a process waits for its device once a step; on a single device it
    costs nothing. It replaces the broadcast that Lightning waits for before every batch (`leave_signals_to_us`). To
    look only at every n-th step would save little, and slow steps could outlast the time that SLURM leaves.
    """

    def __init__(self, path: Path) -> None:
        """Save the checkpoint to `path`."""
        self.path = path
        self._step = 0
        self._saved = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin at the trainer's step."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if asked to, unless gradients are being accumulated.

        Raises:
            PreemptedError: A checkpoint of this step was saved.
        """
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if asked to during the validation after the last step.

        Raises:
            PreemptedError: A checkpoint of the last step was saved.
        """
        self._stop_if_asked(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the loggers, and end the ranks that Lightning started if they do not know that they are to stop."""
        if isinstance(exception, PreemptedError):
            finish_loggers(trainer.loggers, preempted=True)
            if not self._saved and trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGKILL)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        asked = preemption.requested()
        stop = asked is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if not stop:
            return
        trainer.save_checkpoint(self.path)
        self._saved = True
        stopped = PreemptedError(
            f"Stopped by {asked.name if asked else 'a signal to another rank'} after a checkpoint of step "
            f"{trainer.global_step:,}; the same command goes on from there."
        )
        if not console.is_main_process():
            # Rank 0 speaks for all: Lightning's launcher would kill it if another rank ended before it with an error.
            stopped.exit_code = 0
        raise stopped


class ResumeAtStep(pl.Callback):
    """Has every attempt begin with the first batch of an optimizer step, whenever its checkpoint was written.

    Weights and optimizer change only at the end of a step, so any checkpoint holds a whole number of steps, but the
    trainer's count of batches can say otherwise: within a step whose accumulated gradients are not in the checkpoint,
    or with another number of batches to accumulate than now. The count decides when a step ends, what dropout draws,
    and when to validate, so it is computed from the number of steps, as of a checkpoint written right after a step.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the counts in the checkpoint that the trainer is about to read."""
        steps = checkpoint["global_step"]
        batches = steps * trainer.accumulate_grad_batches
        loop = checkpoint["loops"]["fit_loop"]
        within_epoch = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        after_step = {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
        for progress, count in (("epoch_progress", within_epoch), ("epoch_loop.batch_progress", after_step)):
            loop[progress] |= {"total": dict(count), "current": dict(count)}
        loop["epoch_loop.batch_progress"]["is_last_batch"] = False
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - 1  # Lightning counts this step on resuming

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep Lightning from writing the checkpoint that it has just read once more, within the next step."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback._last_global_step_saved = trainer.global_step


def leave_signals_to_us(trainer: pl.Trainer) -> None:
    """Keep Lightning from handling signals, which `retro_lab.preemption` does.

    Its handler for SIGTERM calls a collective operation at whatever moment the signal arrives, while other ranks may be
    at another one. Under SLURM its handlers save a checkpoint at such a moment, and queue the job again, as the job's
    submitter does too. Before each batch of several ranks it also waits for the device, to tell them of a SIGTERM.
    """
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    """Do nothing."""
