"""The LightningDataModule: training batches and evaluation windows."""

from typing import Any

from torch.utils.data import DataLoader

from retro_lab.evaluation.scoring import ScoredData
from retro_lab.evaluation.windows import WindowBatches
from retro_lab.preemption import outlive_signals
from retro_lab.retrieval.sequences import Readable
from retro_lab.training.batches import TrainingBatch, TrainingBatches, piece_size

STALLED_SECONDS = 600
"""How long training waits for a batch of the workers; storage that hangs would otherwise hold its devices for days."""


class RetroDataModule(ScoredData):
    """Batches of one split to train on, and windows of another to score."""

    def __init__(
        self,
        train: Readable,
        validation: WindowBatches,
        *,
        batch_size: int,
        k: int,
        seed: int,
        workers: int,
        overfit_batches: int | None = None,
        neighbor_dropout: float = 0.0,
    ) -> None:
        """Train on global batches of `batch_size` sequences of `train` with k neighbors; validate on `validation`.

        With `overfit_batches`, training uses only that many batches, again and again. Of the sequences, a share of
        `neighbor_dropout` sees no neighbors.
        """
        super().__init__(validation)
        self.train = train
        self.batch_size, self.k, self.seed, self.workers = batch_size, k, seed, workers
        self.overfit_batches, self.neighbor_dropout = overfit_batches, neighbor_dropout

    def train_dataloader(self) -> DataLoader[TrainingBatch]:
        """Load batches from the trainer's current step on, which is not 0 after resuming.

        Raises:
            ConfigurationError: The global batch cannot be divided over devices and accumulated batches.
        """
        assert self.trainer is not None
        accumulated = self.trainer.accumulate_grad_batches
        batches = self._batches(
            piece_size(self.batch_size, self.trainer.world_size, accumulated),
            start_step=self.trainer.global_step,
            accumulated=accumulated,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        return DataLoader(
            batches,
            batch_size=None,
            collate_fn=_whole,
            num_workers=self.workers,
            persistent_workers=False,
            worker_init_fn=_begin_worker,
            timeout=STALLED_SECONDS if self.workers else 0,
            pin_memory=self.pin_memory,
        )

    def documents(self, step: int) -> list[str]:
        """Return the ids of the documents that an optimizer step trains on; steps count from 0."""
        return self._batches(self.batch_size).documents(step)

    def _batches(self, piece_size: int, **cut: int) -> TrainingBatches:
        return TrainingBatches(
            self.train,
            piece_size,
            self.k,
            self.seed,
            repeated=self.overfit_batches,
            neighbor_dropout=self.neighbor_dropout,
            **cut,
        )


def _begin_worker(worker: int) -> None:
    """Let a worker outlive the signal that asks its training process to stop: that process ends its step first."""
    outlive_signals()


def _whole(batch: Any) -> Any:
    """Return the batch as it is: it was read whole, so there is nothing to collate or convert."""
    return batch
