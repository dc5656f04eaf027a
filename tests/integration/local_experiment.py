"""The quickstart on a corpus of the user's own, made small: its commands in the process of the tests, or in their own.

A process of its own takes ten seconds, most of them to import libraries: it is for what only a process shows.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import in_process

SMALL = [
    "+experiment=quickstart",
    "corpus=local",
    "corpus.path=corpus.jsonl",
    "corpus.validation_fraction=0.1",
    "corpus.test_fraction=0.1",
    "tokenizer.vocabulary_size=300",
    "model.chunk_length=8",
    "data.sequence_length=32",
    "evaluation.stride=16",
    "evaluation.curve_points=2",
    "embedder.shard_size=64",
    "embedder.model=embedder",
    "retrieval.k=2",
    "data.batch_size=4",
    "size.width=16",
    "size.encoder_width=16",
    "size.layers=2",
    "size.cca_layers=[2]",
    "size.ffw_width=32",
    "size.encoder_ffw_width=32",
    "schedule.tokens=1024",
    "schedule.warmup_steps=2",
    "callbacks.checkpoint.every_n_train_steps=2",
    "trainer.log_every_n_steps=2",
]


def furnish(folder: Path, tiny_bert: Path) -> Path:
    """Put a corpus and the small encoder, as the embedder, into a folder to work in."""
    sources = sorted((in_process.REPOSITORY / "retro_lab").rglob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in sources if path.stat().st_size > 500][:40]
    rows = [*({"text": text[:1500]} for text in texts), {"text": ""}, {"text": "a\0b"}]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "embedder").symlink_to(tiny_bert)
    return folder


def command(*arguments: str) -> list[str]:
    """Return a small experiment's arguments; what those given set, a sweep among them, is not set twice."""
    given = {argument.partition("=")[0].replace("+sweep", "+experiment") for argument in arguments}
    return [*(argument for argument in SMALL if argument.partition("=")[0] not in given), *arguments]


def run(folder: Path, *arguments: str, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a small experiment's command in this process."""
    return checked(in_process.run_in(folder, command(*arguments)), check)


def run_apart(
    folder: Path, *arguments: str, launcher: tuple[str, ...] = (), check: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a small experiment's command in a process of its own, which `launcher` may start."""
    whole = [sys.executable, *launcher, "-m", "retro_lab", *command(*arguments)]
    return checked(subprocess.run(whole, cwd=folder, capture_output=True, text=True, env=os.environ), check)


def checked(done: subprocess.CompletedProcess[str], code: int) -> subprocess.CompletedProcess[str]:
    """Return a command that ended as it should."""
    assert done.returncode == code, done.stdout + done.stderr
    return done
