"""How fast batches are assembled, and how long a training step waits for them.

    benchmarks/.venv/bin/python benchmarks/dataloader.py                  about 7 GB in a temporary folder, then gone
    benchmarks/.venv/bin/python benchmarks/dataloader.py --cache FOLDER   kept there for the next time

The same store of more than 1 GB is read from the project's memory maps, from h5py, from Hugging Face datasets and by
retro-pytorch, shuffled, from a warm page cache, on one thread and through torch's DataLoader without workers. Ours
also makes masks and lengths. Contestants take turns; a ratio is of medians.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from contestants import Shape
from pytorch_lightning.profilers import SimpleProfiler
from side_by_side import Clock, Row, markdown, origin
from stores import (
    LENGTH,
    VOCABULARY,
    K,
    arrow_batches,
    h5py_batches,
    our_batches,
    our_sequences,
    peer_batches,
    touch,
)

from retro_lab import console
from retro_lab.evaluation.windows import Windows
from retro_lab.model.config import ModelConfig
from retro_lab.model.retro import RetroModel
from retro_lab.retrieval.sequences import Sequences
from retro_lab.training.data import RetroDataModule
from retro_lab.training.module import RetroModule
from retro_lab.training.schedule import WarmupCosine

OURS = "retro_lab"
NEXT_BATCH = "[_TrainingEpochLoop].train_dataloader_next"
STEP = "run_training_batch"
TURNS = 64
"""Batches that ours reads in a turn."""
TARGETS = {"h5py": (20, 50), "Hugging Face datasets": (20, 70), "retro-pytorch": (8, 20)}
"""What we should be times as fast as, at least and at best."""


def main() -> None:
    """Measure, print the tables and, with `--out`, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=4_300_000, help="in the store, 256 bytes each")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps whose wait is measured")
    parser.add_argument("--cache", type=Path, help="folder to keep the stores in")
    parser.add_argument("--out", type=Path, help="folder for dataloader.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console.quiet()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.cache or Path(temporary)
        sequences = our_sequences(folder, arguments.chunks)
        table, rows = assembly(folder, sequences, arguments.batch_size, arguments.rounds)
        rows.append(wait(sequences, arguments.steps))
    report = f"# Data loading\n\n{origin(torch.device('cpu'))}\n\n{table}\n\n## Ratios\n\n{markdown(rows)}\n"
    print(report, end="")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "dataloader.md").write_text(report, encoding="utf-8")


def assembly(folder: Path, sequences: Sequences, batch_size: int, rounds: int) -> tuple[str, list[Row]]:
    """Measure how many sequences a second each contestant assembles."""
    batches: dict[str, Iterator[Any]] = {
        OURS: our_batches(sequences, batch_size),
        "h5py": h5py_batches(folder, sequences, batch_size),
        "Hugging Face datasets": arrow_batches(folder, sequences, batch_size),
        "retro-pytorch": peer_batches(folder, sequences, batch_size),
    }
    for path in folder.rglob("*"):
        if path.is_file():
            _read_whole(path)
    clock = Clock(torch.device("cpu"))
    first = batch_size * TURNS / clock.seconds(_reading(batches[OURS], TURNS))
    touch(sequences)
    # The slow ones read one batch where ours reads many, so that a turn is long enough to be timed.
    turns = {name: TURNS if name == OURS else 2 for name in batches}
    seconds = clock.in_turns({name: _reading(batches[name], turns[name]) for name in batches}, rounds)
    rates = {name: batch_size * turns[name] / seconds[name] for name in batches}
    shown = rates | {f"{OURS}, pages never touched before": first}
    versions = ", ".join(f"{name} {version(name)}" for name in ("h5py", "datasets", "retro-pytorch"))
    size = sequences.store.artifact.manifest.files["tokens.npy"].size
    lines = [
        f"## Batches of {batch_size} sequences of {LENGTH:,} tokens, {K} neighbors of 128 tokens for each of 32 chunks",
        "",
        f"From {size / 1e9:.2f} GB of tokens in random order, from a warm page cache; {versions}.",
        "",
        "| Store | Sequences per second | Million tokens per second, without neighbors |",
        "| :-- | --: | --: |",
        *(f"| {name} | {rate:,.0f} | {rate * LENGTH / 1e6:,.1f} |" for name, rate in shown.items()),
    ]
    rows = [
        Row("T14", "batch assembly", name, rates[OURS] / rates[name], must, aim)
        for name, (must, aim) in TARGETS.items()
    ]
    return "\n".join(lines), rows


def _read_whole(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(2**24):
            pass


def _reading(batches: Iterator[Any], turns: int) -> Callable[[], object]:
    def read() -> None:
        for _ in range(turns):
            next(batches)

    return read


class Durations(SimpleProfiler):
    """Lightning's timings, kept to oneself."""

    def describe(self) -> None:
        """Print nothing."""


def wait(sequences: Sequences, steps: int) -> Row:
    """Train a small RETRO in Lightning's loop and compare how long it waits for batches with how long it computes."""
    shape = Shape(width=256, length=LENGTH, k=K, vocabulary=VOCABULARY)
    model = RetroModel(shape.size, ModelConfig(), VOCABULARY)

    def optimizer(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=1e-4, fused=True)

    module = RetroModule(model, K, [], optimizer, WarmupCosine(steps, 1, 0.1, 0.1), seed=0)
    data = RetroDataModule(sequences, Windows(sequences, LENGTH, 1, 0, 1.0), batch_size=1, k=K, seed=0, workers=0)
    profiler = Durations()
    trainer = pl.Trainer(
        accelerator="cpu", precision="bf16-mixed", max_steps=steps, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, profiler=profiler,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    # The first batch is read before the loop begins, with the loader's own start.
    waited, computed = (sum(profiler.recorded_durations[name][1:]) for name in (NEXT_BATCH, STEP))
    what = f"wait for a batch, width {shape.width}, bfloat16"
    return Row("T15", what, "training step", waited / (waited + computed), 0.02, 0.005, True)


if __name__ == "__main__":
    main()
