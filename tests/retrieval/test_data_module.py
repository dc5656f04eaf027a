"""The DataModule in a real trainer: what is trained on after a restart is what would have come next."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pipeline import CHUNK_LENGTH, build_chunks, search

from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.windows import Windows
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.sequences import Batch, Retrieved, Sequences
from retro_lab.training.batches import TrainingBatch
from retro_lab.training.data import STALLED_SECONDS, RetroDataModule

LENGTH = 4 * CHUNK_LENGTH


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Sequences:
    chunks = build_chunks(tmp_path_factory.mktemp("data"), tiny_bert)
    store: TokenStore = chunks.stores["train"]
    ids = search(chunks, "train", stored=2).ids
    return Sequences(store, Retrieved(store, ids, Value.neighbor_and_continuation), LENGTH)


class Reader(pl.LightningModule):
    """Trains one weight and keeps the batches that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.read: list[Batch] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> torch.Tensor:
        self.read.append(batch["batch"])
        return self.weight**2


def train(sequences: Sequences, steps: int, start: Path | None = None, **settings: Any) -> tuple[Reader, pl.Trainer]:
    """Train up to `steps` optimizer steps, from a checkpoint if one is given."""
    accumulated = settings.pop("accumulated", 1)
    reader = Reader()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, accumulate_grad_batches=accumulated, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    windows = Windows(sequences, LENGTH, 1, 0, 1.0)
    data = RetroDataModule(sequences, windows, **{"batch_size": 4, "k": 2, "seed": 5, "workers": 0} | settings)
    trainer.fit(reader, datamodule=data, ckpt_path=start, weights_only=True)
    return reader, trainer


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 1), (2, 3), (3, 0)])
def test_a_run_resumed_within_an_epoch_reads_on_whatever_the_workers(
    sequences: Sequences, tmp_path: Path, before: int, after: int
) -> None:
    per_epoch = sequences.store.chunks // 4 // 4
    steps = per_epoch + 3  # into the second epoch
    whole, _ = train(sequences, steps)
    _, trainer = train(sequences, per_epoch // 2, workers=before)
    assert trainer.train_dataloader.timeout == (STALLED_SECONDS if before else 0)
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    rest, _ = train(sequences, steps, tmp_path / "middle.ckpt", workers=after)
    assert len(rest.read) == steps - per_epoch // 2
    for batch, expected in zip(rest.read, whole.read[per_epoch // 2 :], strict=True):
        assert batch.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(batch[name], tensor), name


def test_a_run_may_resume_with_other_accumulation(sequences: Sequences, tmp_path: Path) -> None:
    whole, _ = train(sequences, 4)
    _, trainer = train(sequences, 2, accumulated=2)
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    rest, _ = train(sequences, 4, tmp_path / "middle.ckpt", accumulated=4)
    tokens = torch.cat([batch["tokens"] for batch in rest.read])
    assert torch.equal(tokens, torch.cat([batch["tokens"] for batch in whole.read[2:]]))


def test_epochs_hold_the_same_sequences_in_another_order(sequences: Sequences) -> None:
    count = sequences.store.chunks // 4
    reader, _ = train(sequences, 2 * count, batch_size=1)
    rows = np.stack([batch["tokens"].numpy().ravel() for batch in reader.read])
    first, second = rows[:count], rows[count:]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.unique(first, axis=0), np.unique(second, axis=0))


def test_a_batch_that_cannot_be_divided_is_refused(sequences: Sequences) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.batch_size=4 .* 3 accumulated batches; make it a multiple of"):
        train(sequences, 1, accumulated=3)
