"""How a model is scored: the LightningModule that training extends, and its data module."""

import math
from collections.abc import Iterable, Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from retro_lab.errors import DivergenceError
from retro_lab.evaluation.score import HeldOutScore
from retro_lab.evaluation.windows import RankWindows, WindowBatch, WindowBatches
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.sharding import free_gathered, is_sharded, shard
from retro_lab.retrieval.sequences import Batch, documents_of, neighbors_of, padding_of, to_int64


class ScoringModule(pl.LightningModule):
    """Scores held-out windows with several numbers of neighbors."""

    def __init__(self, model: LanguageModel, scored_k: Iterable[int], *, counts_hits: bool = False) -> None:
        """Score `model` with each k of `scored_k`, and if wanted count the tokens that are the most probable."""
        super().__init__()
        self.model = model
        self.counts_hits = counts_hits
        self.scores = nn.ModuleDict({str(k): HeldOutScore(model.chunk_length) for k in scored_k})

    def configure_model(self) -> None:
        """Divide the model over devices if the strategy does so; Lightning calls this before each fit or score."""
        mesh = self.device_mesh
        if mesh is not None and not is_sharded(self.model):
            mixed = self.trainer.precision == "bf16-mixed"
            shard(self.model, mesh["data_parallel"], torch.bfloat16 if mixed else None)

    def measured(self) -> Iterator[tuple[int, HeldOutScore]]:
        """Yield each scored k with its score so far."""
        for k, score in self.scores.items():
            assert isinstance(score, HeldOutScore)
            yield int(k), score

    def on_validation_epoch_start(self) -> None:
        """Reset the scores."""
        for _, score in self.measured():
            score.reset()

    def validation_step(self, batch: WindowBatch, batch_idx: int) -> None:
        """Score a batch of windows with each k."""
        windows = to_int64(batch["batch"])
        for k, score in self.measured():
            hits = None
            if self.counts_hits:
                context = (*neighbors_of(windows, k), documents_of(windows), padding_of(windows))
                nats, hits = self.model.token_losses_and_hits(
                    windows["tokens"], windows["targets"], windows["mask"], *context
                )
            else:
                nats = self.token_nats(windows, k)
            mask = windows["mask"]
            score.update(nats * mask, mask, batch["windows"], batch["bytes"], batch["documents"], hits)

    def token_nats(self, windows: Batch, k: int) -> Tensor:
        """Return the cross-entropy [B, N] of each target of some windows, with k neighbors for each chunk."""
        return self.model.token_losses(
            windows["tokens"], windows["targets"], *neighbors_of(windows, k), documents_of(windows), padding_of(windows)
        )

    def on_validation_epoch_end(self) -> None:
        """Log bits per byte for each k."""
        free_gathered(self.model)
        for k, score in self.measured():
            self.log(f"validation/bits_per_byte/k={k}", score.compute().bits_per_byte)


def check_finite(module: ScoringModule) -> None:
    """Refuse scores that are not finite.

    Raises:
        DivergenceError: A score is not finite.
    """
    for k, score in module.measured():
        bits_per_byte = score.compute().bits_per_byte
        if not math.isfinite(bits_per_byte):
            raise DivergenceError(
                f"The score with k = {k} is {bits_per_byte}: this model diverged in training. "
                "Train it under another name (name=NAME) with a lower optimizer.lr."
            )


class ScoredData(pl.LightningDataModule):
    """The windows to score; each rank loads its share of the batches."""

    def __init__(self, windows: WindowBatches) -> None:
        """Score `windows`."""
        super().__init__()
        self.windows = windows

    def val_dataloader(self) -> DataLoader[WindowBatch]:
        """Load the windows."""
        assert self.trainer is not None
        share = RankWindows(self.windows, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(share, batch_size=None, pin_memory=self.pin_memory)

    @property
    def pin_memory(self) -> bool:
        """Whether batches go to a GPU."""
        assert self.trainer is not None
        return self.trainer.strategy.root_device.type == "cuda"
