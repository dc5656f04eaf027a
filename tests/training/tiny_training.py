"""A training of a moment on data that a function of the batch's number makes: for tests of what surrounds training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from retro_lab.training.checkpoints import DurableCheckpoints


class Numbers(IterableDataset[Tensor]):
    """Batches `start`, `start` + 1, ... without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[Tensor]:
        number = self.start
        while True:
            yield torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
            number += 1


class Data(pl.LightningDataModule):
    """Reads on where the trainer is, as the real one does."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        assert self.trainer is not None
        return DataLoader(Numbers(self.trainer.global_step), batch_size=None)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.ones(2, 3), batch_size=None)  # type: ignore[arg-type]


class Line(pl.LightningModule):
    """Learns a linear map; its loss is `poison` from step `poisoned` on."""

    def __init__(self, poisoned: int | None = None, poison: float = float("nan")) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.poisoned, self.poison = poisoned, poison

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch).square().mean()
        if self.poisoned is not None and self.global_step >= self.poisoned:
            loss = loss * self.poison
        self.log("train/loss", loss.detach())
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("validation", self.layer(batch).mean())


def trainer(folder: Path, steps: int, callbacks: Any = (), **settings: Any) -> pl.Trainer:
    """A quiet trainer with durable checkpoints, every two steps unless `settings` say otherwise."""
    last = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "checkpoints", filename="last", every_n_train_steps=2, save_on_train_epoch_end=False,
        enable_version_counter=False,
    )  # fmt: skip
    made = pl.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[last, *callbacks], check_val_every_n_epoch=None,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        **{"logger": False, "val_check_interval": 2} | settings,
    )  # fmt: skip
    made.strategy.checkpoint_io = DurableCheckpoints()
    return made
