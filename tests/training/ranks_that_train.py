"""Trainings on one, two and four ranks, as `torchrun` starts them, forked after slow imports; results go to a folder.

Argument: the folder. Each training writes NAME.pt: its losses, weights, scores and what its ranks hold.
"""

import os
import shutil
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM

from retro_lab.errors import ArtifactError
from retro_lab.model.backbones.retrofitted import RetrofittedModel
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.retro import RetroModel
from retro_lab.model.sharding import is_sharded, whole_weights
from retro_lab.training.batches import piece_size
from retro_lab.training.checkpoints import CHECKPOINT, DurableCheckpoints
from retro_lab.training.divergence import DivergenceGuard
from retro_lab.training.module import RetroModule, freeze_all_but_retrieval
from retro_lab.training.schedule import WarmupCosine
from retro_lab.training.sharding import ShardedStrategy
from retro_lab.training.stopping import ResumeAtStep
from retro_lab.training.training import ValidationCurve, baseline_weights, fit

CONTINUED = [
    *[(first, other) for first in ("ddp", "fsdp") for other in ("fsdp", "1", "4")],
    *[("fsdp", other) for other in ("ddp", "1 fsdp", "4 ddp")],
]
"""Strategies of two ranks that are continued under another strategy, or on another number of ranks."""
VOCABULARY, LENGTH, M, BATCH = 23, 8, 4, 8
SEED = 3
SIZE = SizeConfig(
    name="small", width=8, ffw_width=12, heads=2, head_size=4, layers=2, cca_layers=[2], encoder_width=8,
    encoder_ffw_width=8, encoder_heads=2, encoder_head_size=4, encoder_layers=1,
)  # fmt: skip


def choices(tied: bool = True, shared: bool = False) -> ModelConfig:
    return ModelConfig(chunk_length=M, tied_readout=tied, shared_embeddings=shared, init_std=0.2)


def sequences(seed: int) -> dict[str, torch.Tensor]:
    """A global batch whose sequences have very different numbers of text tokens."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=draw)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "mask": torch.rand(BATCH, LENGTH, generator=draw) < torch.linspace(0.2, 1, BATCH)[:, None],
        "neighbors": torch.randint(VOCABULARY, (BATCH, LENGTH // M, 2, 2 * M), generator=draw),
        "neighbor_lengths": torch.randint(2 * M + 1, (BATCH, LENGTH // M, 2), generator=draw),
        "documents": torch.empty(BATCH, 0),
        "padding": torch.empty(0),
    }


class Pieces(IterableDataset[dict[str, Any]]):
    """A rank's pieces of the global batches from a step on."""

    def __init__(self, step: int, accumulated: int, rank: int, world: int) -> None:
        self.step, self.accumulated, self.rank, self.world = step, accumulated, rank, world

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step, size = self.step, piece_size(BATCH, self.world, self.accumulated)
        while True:
            batch = sequences(step)
            for part in range(self.accumulated):
                first = (part * self.world + self.rank) * size
                piece = {name: value[first : first + size] for name, value in batch.items()}
                yield {"batch": piece, "text_tokens": batch["mask"].sum()}
            step += 1


class Data(pl.LightningDataModule):
    """Batches from the trainer's step on, and one batch for each rank to score."""

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        accumulated, rank, world = (
            self.trainer.accumulate_grad_batches,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return DataLoader(Pieces(self.trainer.global_step, accumulated, rank, world), batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        size = BATCH // self.trainer.world_size
        mine = slice(self.trainer.global_rank * size, (self.trainer.global_rank + 1) * size)
        batch = {name: value[mine] for name, value in sequences(10_000).items()}
        scored = {"batch": batch, "windows": torch.arange(BATCH)[mine], "bytes": torch.tensor(30 * size)}
        return DataLoader([scored | {"documents": torch.tensor(size)}], batch_size=None)  # type: ignore[arg-type]


class PoisonedModule(RetroModule):
    """On the last rank alone, the loss of step 1, or only the gradient of step 3, is not finite."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_rank == self.trainer.world_size - 1:
            if self.trainer.global_step == 1:
                return loss + float("nan")
            if self.trainer.global_step == 3:
                return loss + 0 * (loss - loss.detach()).sqrt()
        return loss


class Losses(pl.Callback):
    """Keeps the loss of every step, which steps moved the weights, and the bytes that a rank holds after one."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.held: dict[str, int] = {}
        self.gathered: dict[str, int] = {}
        self.moved: list[bool] = []
        self.weights: list[torch.Tensor] = []
        self.step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, RetroModule)
        for block in pl_module.model.blocks():
            block.register_forward_pre_hook(self.look_at_block)

    def look_at_block(self, block: torch.nn.Module, _: Any) -> None:
        self.gathered["block"] = max(self.gathered.get("block", 0), gathered_bytes(block))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        self.gathered["outside"] = gathered_bytes(pl_module)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        held = {"weights": list(pl_module.model.parameters())}  # type: ignore[union-attr]
        held["gradients"] = [p.grad for p in held["weights"] if p.grad is not None]
        held["moments"] = [v for s in optimizer.state.values() for v in s.values() if v.ndim]
        self.held = {name: sum(local(t).numel() * t.element_size() for t in ts) for name, ts in held.items()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step != self.step:
            now = [local(parameter.detach()).clone() for parameter in pl_module.parameters()]
            same = all(torch.equal(old, new) for old, new in zip(self.weights, now, strict=True))
            self.moved, self.weights = [*self.moved, not same], now
            self.step = trainer.global_step
            self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = trainer.global_step
        self.weights = [local(parameter.detach()).clone() for parameter in pl_module.parameters()]


def gathered_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of the parameters that are whole at the moment."""
    whole = [parameter for parameter in module.parameters() if not isinstance(parameter, DTensor)]
    return sum(parameter.numel() * parameter.element_size() for parameter in whole)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def train(
    folder: Path, strategy: str, steps: int, *, precision: str = "32-true", accumulated: int = 1, clip: float = 0.05,
    start: Path | None = None, compile: bool = False, checkpointed: bool = False, tied: bool = True,
    shared: bool = False, k: int = 2, save_every: int = 100, poisoned: bool = False, frozen: bool = True,
    backbone: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a very small model in a folder, from the checkpoint in it if there is one."""
    losses, guard = Losses(), DivergenceGuard(2 if poisoned else 1, lambda _: [], "")
    every = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "checkpoints", filename="last", every_n_train_steps=save_every, save_on_train_epoch_end=False,
        enable_version_counter=False,
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), max_steps=steps, precision=precision,  # type: ignore[arg-type]
        strategy=ShardedStrategy() if strategy == "fsdp" else strategy, accumulate_grad_batches=accumulated,
        gradient_clip_val=clip, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[every, ValidationCurve(1), guard, ResumeAtStep(), losses],
        check_val_every_n_epoch=None,
        val_check_interval=3 * accumulated, num_sanity_val_steps=0, default_root_dir=folder, inference_mode=False,
    )  # fmt: skip
    if strategy != "fsdp":
        trainer.strategy.checkpoint_io = DurableCheckpoints()
    base = None if backbone is None else tiny_llama()
    pl.seed_everything(SEED, verbose=False)
    model: LanguageModel
    weights = None
    if base is not None:
        weights = {f"base.{name}": value.clone() for name, value in base.state_dict().items()}
        model = RetrofittedModel(base, SIZE, choices(), SIZE.cca_layers, frozen=backbone == "frozen")
    else:
        with torch.device("meta") if strategy == "fsdp" else nullcontext():
            size = SIZE if k else SizeConfig(**{**vars(SIZE), "cca_layers": []})
            model = RetroModel(size, choices(tied, shared), VOCABULARY)
    model.checkpoint_activations(checkpointed)
    if start is not None:
        weights = baseline_weights(model, start)
        if frozen:
            freeze_all_but_retrieval(model)
    optimizer = partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.1, fused=True)
    module = (PoisonedModule if poisoned else RetroModule)(
        model, k, sorted({0, k}), optimizer, WarmupCosine(12, 2, 0.1, 0.1), SEED, start=weights, compile=compile
    )
    fit(trainer, module, Data(), folder)
    assert is_sharded(model) == (strategy == "fsdp")
    groups = [len(group["params"]) for group in trainer.optimizers[0].param_groups]
    curve = next(c for c in trainer.callbacks if isinstance(c, ValidationCurve)).points  # type: ignore[attr-defined]
    found = {
        "losses": losses.losses,
        "curve": curve,
        "held": losses.held,
        "gathered": losses.gathered,
        "moved": losses.moved,
        "skipped": guard.skipped,
        "groups": groups,
        "step": trainer.global_step,
    }
    return found | {"weights": whole_weights(model)}


def tiny_llama() -> LlamaForCausalLM:
    """A base with tied embeddings, always the same."""
    torch.manual_seed(SEED + 1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def on_one(root: Path) -> dict[str, Any]:
    done: dict[str, Any] = {"one": train(root / "one", "auto", 6, accumulated=2)}
    done["baseline"] = train(root / "baseline", "auto", 3, k=0)
    done["untied one"] = train(root / "untied", "auto", 2, tied=False, shared=True)
    done["retrofit one"] = train(root / "retrofit one", "auto", 3, start=root / "baseline" / CHECKPOINT)
    for kind in ("frozen", "free"):
        done[f"{kind} base one"] = train(root / f"{kind} base", "auto", 3, backbone=kind)
    done["bf16 one"] = train(root / "bf16", "auto", 4, precision="bf16-mixed")
    done["fsdp on one"] = train(root / "fsdp on one", "fsdp", 6)
    return done


def on_two(root: Path) -> dict[str, Any]:
    done = {name: train(root / name, name, 6) for name in ("ddp", "fsdp")}
    done["accumulated fsdp"] = train(root / "accumulated", "fsdp", 6, accumulated=2, checkpointed=True)
    done["untied fsdp"] = train(root / "untied fsdp", "fsdp", 2, tied=False, shared=True)
    done["retrofit fsdp"] = train(root / "retrofit fsdp", "fsdp", 3, start=root / "baseline" / CHECKPOINT)
    for steps in (2, 3):
        resumed = train(root / "retrofit resumed", "fsdp", steps, start=root / "baseline" / CHECKPOINT)
    done["retrofit resumed"] = resumed
    done["frozen base ddp"] = train(root / "frozen base ddp", "ddp", 3, backbone="frozen")
    done["free base ddp"] = train(root / "free base ddp", "ddp", 3, backbone="free")
    done["frozen base fsdp"] = train(root / "frozen base fsdp", "fsdp", 3, backbone="frozen", checkpointed=True)
    done["free base fsdp"] = train(root / "free base fsdp", "fsdp", 3, backbone="free")
    train(root / "sharded baseline", "fsdp", 3, k=0)
    done["retrofit from shards"] = train(
        root / "retrofit shards", "ddp", 3, start=root / "sharded baseline" / CHECKPOINT
    )
    done["bf16 fsdp"] = train(root / "bf16 fsdp", "fsdp", 4, precision="bf16-mixed")
    train(root / "bf16 weights", "fsdp", 2, precision="bf16-true")
    for strategy in ("ddp", "fsdp"):
        done[f"poisoned {strategy}"] = train(root / f"poisoned {strategy}", strategy, 6, poisoned=True)
    for strategy in ("ddp", "fsdp"):  # what others continue
        train(root / strategy / "begun", strategy, 3, save_every=2)
    if os.environ["RANK"] == "0":
        for strategy, other in CONTINUED:
            shutil.copytree(root / strategy / "begun", root / f"{strategy} to {other}")
    torch.distributed.barrier()
    for strategy, other in (("ddp", "fsdp"), ("fsdp", "ddp"), ("fsdp", "fsdp")):
        done[f"{strategy} to {other}"] = train(root / f"{strategy} to {other}", other, 6)
    return done


def on_one_again(root: Path) -> dict[str, Any]:
    done = {f"{first} to 1": train(root / f"{first} to 1", "auto", 6, accumulated=2) for first in ("ddp", "fsdp")}
    done["fsdp to 1 fsdp"] = train(root / "fsdp to 1 fsdp", "fsdp", 6)
    return done


def on_four(root: Path) -> dict[str, Any]:
    done = {f"{first} to 4": train(root / f"{first} to 4", "fsdp", 6) for first in ("ddp", "fsdp")}
    done["fsdp to 4 ddp"] = train(root / "fsdp to 4 ddp", "ddp", 6)
    done["fsdp on four"] = train(root / "fsdp on four", "fsdp", 6)
    return done


def compiled_on_one(root: Path) -> dict[str, Any]:
    return {"compiled fsdp": train(root / "compiled fsdp", "fsdp", 3, compile=True, k=0)}


def damaged_on_two(root: Path) -> dict[str, Any]:
    """Continue from a checkpoint of which one byte has changed, and then from one without any whole predecessor."""
    folder = root / "damaged"
    train(folder, "fsdp", 3, save_every=2)
    if os.environ["RANK"] == "0":
        path = next((folder / CHECKPOINT).glob("__1_*"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    done: dict[str, Any] = {"damaged": train(folder, "fsdp", 6)}
    if os.environ["RANK"] == "0":
        for name in ("last.ckpt", "previous.ckpt"):
            next((folder / "checkpoints" / name).glob("__0_*")).unlink()
    torch.distributed.barrier()
    try:
        train(folder, "fsdp", 8)
    except ArtifactError as error:
        done["refused"] = str(error)
    return done


WORLDS = {
    "on_one": (1, on_one),
    "on_two": (2, on_two),
    "on_one_again": (1, on_one_again),
    "on_four": (4, on_four),
    "damaged_on_two": (2, damaged_on_two),
    "compiled_on_one": (1, compiled_on_one),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(rank: int, world: int, port: int, work: Any, root: Path) -> int:
    """Fork a rank and return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(root / f"{work.__name__}.{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
        done = work(root)
        torch.save(done, root / f"{work.__name__}.{rank}.pt")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(root: Path, names: list[str]) -> int:
    torch.set_num_threads(1)
    for name in names:
        world, work = WORLDS[name]
        port = free_port()
        ranks = [start(rank, world, port, work, root) for rank in range(world)]
        if any([os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]):
            print("\n".join(log.read_text() for log in sorted(root.glob(f"{name}.*.log"))))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
