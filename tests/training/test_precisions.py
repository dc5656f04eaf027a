"""Every precision that is offered trains, clipped and with a fused optimizer; every other is refused."""

from functools import partial
from typing import Any, get_args

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.connector import _PRECISION_INPUT
from torch.utils.data import DataLoader

from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.score import HeldOutScore
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel
from retro_lab.training.config import SHORT_PRECISIONS
from retro_lab.training.module import RetroModule
from retro_lab.training.precision import HALF_WITH_SCALER, PRECISIONS, checked_precision
from retro_lab.training.schedule import WarmupCosine

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
OFFERED = [("cpu", precision) for precision in PRECISIONS if precision != HALF_WITH_SCALER]
OFFERED += [pytest.param("gpu", precision, marks=ON_GPU) for precision in PRECISIONS]
STEPS = 30
SIZE = SizeConfig(
    name="small", width=16, ffw_width=32, heads=2, head_size=8, layers=2, cca_layers=[2], encoder_width=16,
    encoder_ffw_width=16, encoder_heads=2, encoder_head_size=8, encoder_layers=1,
)  # fmt: skip


class Norms(pl.Callback):
    """Note the largest norm that any step's optimizer is given, and the losses."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *others: Any) -> None:
        gradients = [
            parameter.grad.float().norm() for parameter in pl_module.parameters() if parameter.grad is not None
        ]
        self.norms.append(float(torch.stack(gradients).norm()))
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def trained(precision: str, accelerator: str, positions: str, clip: float) -> tuple[Norms, RetroModule]:
    """Train a very small RETRO on one batch."""
    torch.manual_seed(0)
    model = RetroModel(SIZE, ModelConfig(chunk_length=4, init_std=0.1, positions=positions), 23)
    optimizer = partial(torch.optim.AdamW, lr=1e-2, fused=True)
    module = RetroModule(model, 2, [0, 2], optimizer, WarmupCosine(100, 0, 1, 1), seed=0)
    text = torch.randint(23, (4, 17))
    inputs = {
        "tokens": text[:, :-1], "targets": text[:, 1:], "mask": torch.ones(4, 16, dtype=torch.bool),
        "neighbors": torch.randint(23, (4, 4, 2, 8)), "neighbor_lengths": torch.randint(9, (4, 4, 2)),
        "documents": torch.empty(0),
        "padding": torch.empty(0),
    }  # fmt: skip
    window = {"batch": inputs, "windows": torch.arange(4), "bytes": torch.tensor(100_001), "documents": torch.tensor(1)}
    norms = Norms()
    trainer = pl.Trainer(
        accelerator=accelerator, devices=1, precision=precision, max_steps=STEPS, gradient_clip_val=clip,  # type: ignore[arg-type]
        callbacks=[norms], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    batches = DataLoader([{"batch": inputs, "text_tokens": torch.tensor(64)}] * STEPS, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, batches, DataLoader([window] * 3, batch_size=None))  # type: ignore[arg-type]
    return norms, module


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
@pytest.mark.parametrize(("accelerator", "precision"), OFFERED)
def test_the_loss_falls_and_the_gradient_is_clipped(accelerator: str, precision: str, positions: str) -> None:
    seen, module = trained(precision, accelerator, positions, clip=0.5)
    assert seen.losses[-1] < 0.6 * seen.losses[0]
    assert max(seen.norms) < 0.51
    assert max(seen.norms) > 0.49  # some step had something to clip
    for _, score in module.measured():  # of three windows, summed exactly whatever the model's precision
        assert int(score.bytes) == 300_003
        assert int(score.compute().tokens) == 3 * 64
        assert score.compute().nats.dtype == torch.float64


def test_whatever_lightning_takes_is_offered_or_refused_in_one_sentence() -> None:
    names = [name for choices in get_args(_PRECISION_INPUT) for name in get_args(choices)]
    assert set(PRECISIONS) < set(names)
    for name in names:
        if str(name) in {*PRECISIONS, *SHORT_PRECISIONS}:
            assert checked_precision(name, "gpu") in PRECISIONS
            continue
        with pytest.raises(
            ConfigurationError, match=rf"^trainer\.precision={name} [^\n]*; use bf16-mixed or bf16-true"
        ):
            checked_precision(name, "gpu")
    assert checked_precision(None, "gpu") == "32-true"


def test_half_precision_is_refused_on_a_processor_which_lightning_would_change_in_silence() -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.precision=16-mixed needs a GPU"):
        checked_precision("16-mixed", "cpu")


def test_a_score_of_a_model_in_bfloat16_is_summed_in_float64() -> None:
    score = HeldOutScore(1).to(torch.bfloat16)
    for _ in range(1000):
        one = torch.ones(1, 1)
        score.update(1.001 * one, one.bool(), torch.tensor([0]), torch.tensor(1), torch.tensor(1))
    assert float(score.compute().nats) == pytest.approx(1001, rel=1e-6)
