"""The LightningModule: how a RETRO, or its baseline, is trained and scored."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from retro_lab.evaluation.score import HeldOutScore
from retro_lab.evaluation.windows import WindowBatch
from retro_lab.model.retro import RetroModel
from retro_lab.retrieval.sequences import Batch, documents_of, neighbors_of, widened
from retro_lab.training.compiled import compiled
from retro_lab.training.schedule import WarmupCosine

OptimizerFactory = Callable[[Iterable[dict[str, Any]]], Optimizer]


class RetroModule(pl.LightningModule):
    """Trains `model` with k neighbors, and scores it with each k of `validation_neighbors`."""

    def __init__(
        self,
        model: RetroModel,
        k: int,
        validation_neighbors: Iterable[int],
        optimizer: OptimizerFactory,
        schedule: WarmupCosine,
        seed: int,
        *,
        compile: bool = False,
    ) -> None:
        """Keep the parts; `optimizer` is called with parameter groups once training starts.

        Only the training step is compiled: its batches all have one shape, evaluation has others and is a small part.
        """
        super().__init__()
        self.model = model
        self.training_loss = compiled(model.loss) if compile else model.loss
        self.k = k
        self.validation_neighbors = list(validation_neighbors)
        self.optimizer_factory = optimizer
        self.schedule = schedule
        self.seed = seed
        self.scores = nn.ModuleDict({str(neighbors): HeldOutScore() for neighbors in self.validation_neighbors})

    def measured(self) -> Iterator[tuple[int, HeldOutScore]]:
        """Yield each k that is scored, with its score so far."""
        for neighbors, score in self.scores.items():
            assert isinstance(score, HeldOutScore)
            yield int(neighbors), score

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Decay matrices only, and move the learning rate once each step."""
        trained = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        decayed = [parameter for name, parameter in trained if _is_decayed(name, parameter)]
        others = [parameter for name, parameter in trained if not _is_decayed(name, parameter)]
        optimizer = self.optimizer_factory([{"params": decayed}, {"params": others, "weight_decay": 0.0}])
        scheduler = LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by the batch's number, so that a resumed run draws what the uninterrupted one would."""
        torch.manual_seed(hash((self.seed, batch_idx, self.global_rank)) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the text tokens of the global batch, in nats."""
        batch = widened(batch)
        neighbors, lengths = neighbors_of(batch, self.k)
        nats = self.training_loss(
            batch["tokens"], batch["targets"], batch["mask"], neighbors, lengths, documents_of(batch)
        )
        tokens = batch["mask"].sum()
        if self.trainer.world_size > 1:
            # Ranks hold different numbers of text tokens, and gradients are averaged over ranks: dividing by the mean
            # number makes the average the mean over all tokens of the global batch.
            tokens = self.trainer.strategy.reduce(tokens.float(), reduce_op="mean")
        loss = nats / tokens.clamp(min=1)
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last scores."""
        for _, score in self.measured():
            score.reset()

    def validation_step(self, batch: WindowBatch, batch_idx: int) -> None:
        """Score a batch of windows with each k."""
        windows = widened(batch["batch"])
        for neighbors, score in self.measured():
            nats = self.model.loss(
                windows["tokens"],
                windows["targets"],
                windows["mask"],
                *neighbors_of(windows, neighbors),
                documents_of(windows),
            )
            score.update(nats, windows["mask"].sum(), batch["bytes"], batch["documents"])

    def on_validation_epoch_end(self) -> None:
        """Log bits per byte for each k."""
        for neighbors, score in self.measured():
            self.log(f"validation/bits_per_byte/k={neighbors}", score.compute().bits_per_byte)


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not name.endswith("bias")


def freeze_all_but_retrieval(model: RetroModel) -> None:
    """Leave only encoder and chunked cross-attention trainable: RETROfit (Borgeaud et al. 2022, Sec. 4.2)."""
    retrieval = {name for name, _ in model.retrieval_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in retrieval)
