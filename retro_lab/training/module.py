"""The LightningModule that trains a RETRO or its baseline; its base class does the scoring."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities import GradClipAlgorithmType
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from retro_lab.evaluation.scoring import ScoringModule
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.sharding import is_sharded, load_weights
from retro_lab.retrieval.sequences import documents_of, neighbors_of, padding_of, to_int64
from retro_lab.training.batches import TrainingBatch
from retro_lab.training.compiled import compile_blocks, compiled
from retro_lab.training.schedule import WarmupCosine

OptimizerFactory = Callable[[Iterable[dict[str, Any]]], Optimizer]


class RetroModule(ScoringModule):
    """Trains `model` with k neighbors, and scores it with each k of `scored_k`."""

    def __init__(
        self,
        model: LanguageModel,
        k: int,
        scored_k: Iterable[int],
        optimizer: OptimizerFactory,
        schedule: WarmupCosine,
        seed: int,
        *,
        start: Mapping[str, Tensor] | None = None,
        compile: bool = False,
    ) -> None:
        """Keep the parts; `optimizer` is called with parameter groups once training starts.

        If the strategy divides the model over devices, `model` may be on the meta device: its weights are then drawn
        with `seed`, the same as in a single process, and no device ever holds all of them. Of `start`, weights by name,
        training starts in either case.

        Only the training step is compiled: its batches all have one shape. Evaluation has other shapes and takes little
        of the time.
        """
        super().__init__(model, scored_k)
        self.training_loss = compiled(model.loss) if compile else model.loss
        self.start, self.compiles = start, compile
        self.k = k
        self.optimizer_factory = optimizer
        self.schedule = schedule
        self.seed = seed
        self.step_loss = torch.zeros((), dtype=torch.float32)

    def configure_model(self) -> None:
        """Divide the model over devices if the strategy does so, and fill it with the weights to start from."""
        if not is_sharded(self.model):
            super().configure_model()
            if is_sharded(self.model):
                if any(parameter.is_meta for parameter in self.model.parameters()):
                    self.model.to_empty(device=self.trainer.strategy.root_device)
                    torch.manual_seed(self.seed)
                    self.model.reset_parameters()
                self.training_loss = self.model.loss
                if self.compiles:
                    compile_blocks(self.model)
        if self.start is not None:
            load_weights(self.model, self.start)
            self.start = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen weights out of a checkpoint: they are where they came from, and stay what they were."""
        frozen = self._frozen()
        checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the frozen weights from the model itself, so that none but those may be missing."""
        checkpoint["state_dict"] = self._frozen() | checkpoint["state_dict"]

    def _frozen(self) -> dict[str, Tensor]:
        frozen = {parameter for parameter in self.model.parameters() if not parameter.requires_grad}
        return {name: value for name, value in self.state_dict(keep_vars=True).items() if value in frozen}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Apply weight decay to matrices only, and update the learning rate after each step."""
        trained = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        decayed = [parameter for name, parameter in trained if _is_decayed(name, parameter)]
        others = [parameter for name, parameter in trained if not _is_decayed(name, parameter)]
        optimizer = self.optimizer_factory([{"params": decayed}, {"params": others, "weight_decay": 0.0}])
        scheduler = LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: TrainingBatch, batch_idx: int) -> None:
        """Seed dropout by the batch's number, so that a resumed run draws what the uninterrupted one would."""
        torch.manual_seed(hash((self.seed, batch_idx, self.global_rank)) % 2**63)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Return this piece's share of the global batch's mean cross-entropy, in nats, times the number of pieces.

        The pieces of a global batch, one for each device and accumulated batch, hold different numbers of text tokens.
        Lightning averages over accumulated batches and devices. Each piece's sum is therefore divided by the mean
        number of tokens per piece, and the average becomes the mean over all text tokens, as if the global batch were
        one piece. Dividing the loss here, rather than the summed gradients before the step, keeps half-precision
        gradients in the range of a mean.
        """
        inputs = to_int64(batch["batch"])
        nats = self.training_loss(
            inputs["tokens"],
            inputs["targets"],
            inputs["mask"],
            *neighbors_of(inputs, self.k),
            documents_of(inputs),
            padding_of(inputs),
        )
        accumulated = self.trainer.accumulate_grad_batches
        loss = nats * (accumulated * self.trainer.world_size) / batch["text_tokens"].clamp(min=1)
        self.step_loss = self.step_loss + loss.detach() / accumulated
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the loss of the whole global batch."""
        self.log("train/loss", self.step_loss, prog_bar=True, sync_dist=True)
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])
        self.step_loss = torch.zeros((), dtype=torch.float32)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer | LightningOptimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient, which Lightning refuses to do under autocast with a fused optimizer.

        Such an optimizer can unscale gradients within its step, so Lightning assumes that they are still scaled, even
        in bfloat16, which needs no loss scaling. If there is a scaler, it unscales them here.
        """
        if not gradient_clip_val:
            return
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
            self.log("train/gradient_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not name.endswith("bias")


def freeze_all_but_retrieval(model: LanguageModel) -> None:
    """Leave only the encoder and chunked cross-attention trainable: RETROfit (Borgeaud et al. 2022, Sec. 4.2)."""
    retrieval = {name for name, _ in model.retrieval_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in retrieval)
