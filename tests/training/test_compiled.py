"""`compute.compile`: the training step is compiled, and nothing else changes."""

import shutil
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from retro_lab.errors import ConfigurationError
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel
from retro_lab.training.compiled import check_compiler, compiled
from retro_lab.training.module import RetroModule
from retro_lab.training.schedule import WarmupCosine

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")


def trained(compile: bool, checkpoint: dict[str, Any] | None = None, steps: int = 2) -> tuple[RetroModule, Any]:
    """Train a very small model for a few steps; return it and what its checkpoint holds."""
    size = SizeConfig(
        name="small", width=8, ffw_width=8, heads=2, head_size=4, layers=1, cca_layers=[1], encoder_width=8,
        encoder_ffw_width=8, encoder_heads=2, encoder_head_size=4, encoder_layers=1,
    )  # fmt: skip
    pl.seed_everything(0, verbose=False)
    model = RetroModel(size, ModelConfig(chunk_length=4), 23)
    module = RetroModule(
        model, 2, [], partial(torch.optim.AdamW, lr=1e-2), WarmupCosine(9, 0, 1, 1), 0, compile=compile
    )
    if checkpoint is not None:
        module.load_state_dict(checkpoint)
    tokens, neighbors = torch.arange(16).view(2, 8), torch.arange(64).view(2, 2, 2, 8) % 23
    inputs = {
        "tokens": tokens,
        "targets": tokens + 1,
        "mask": torch.ones_like(tokens).bool(),
        "neighbors": neighbors,
        "neighbor_lengths": torch.full((2, 2, 2), 8),
        "documents": torch.empty(0),
        "padding": torch.empty(0),
    }
    batch = {"batch": inputs, "text_tokens": torch.tensor(16)}
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([batch] * steps, batch_size=None))
    return module, module.state_dict()


@needs_compiler
def test_a_compiled_step_trains_as_the_other_and_checkpoints_go_both_ways() -> None:
    _, eager = trained(compile=False)
    _, fused = trained(compile=True)
    assert eager.keys() == fused.keys()
    for name, value in eager.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-3, atol=1e-5)
    for start, compile in ((eager, True), (fused, False)):
        _, further = trained(compile, start, steps=1)
        assert further.keys() == eager.keys()


def test_a_machine_without_a_compiler_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        ConfigurationError,
        match=r"needs a C\+\+ compiler, and none was found; install g\+\+.*compute\.compile=false\.$",
    ):
        check_compiler()


def test_a_compiler_that_does_not_work_is_one_sentence() -> None:
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "/nonexistent/g++")}),
        torch._inductor.utils.fresh_cache(),
        pytest.raises(ConfigurationError, match=r"cannot compile the model \(.*\); install g\+\+[^\n]*$"),
    ):
        compiled(lambda x: x.sin() + 1)(torch.ones(3))
