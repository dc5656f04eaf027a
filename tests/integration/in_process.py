"""Commands of the real command line in the process of the tests, made small, on a corpus that is made in a moment."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import MappingProxyType

import pytest
from hydra.core.hydra_config import HydraConfig

from retro_lab import cli

REPOSITORY = Path(__file__).parents[2]
CORPUS = "my.jsonl"
EMBEDDER = "embedder"
SMALL = {
    "corpus.max_bytes": "4e4",
    "corpus.validation_fraction": "0.2",
    "corpus.test_fraction": "0.2",
    "tokenizer.vocabulary_size": "300",
    "data.sequence_length": "64",
    "data.batch_size": "4",
    "evaluation.stride": "32",
    "evaluation.curve_points": "1",
    "evaluation.curve_tokens": "200",
    "size.width": "16",
    "size.ffw_width": "32",
    "size.layers": "1",
    "size.cca_layers": "[1]",
    "size.encoder_layers": "1",
    "size.encoder_width": "16",
    "size.encoder_ffw_width": "32",
    "schedule.tokens": "512",
    "schedule.warmup_steps": "2",
}


def furnish(folder: Path, tiny_bert: Path) -> Path:
    """Put a corpus of the user's own and a small embedder into a folder to work in."""
    sources = sorted((REPOSITORY / "retro_lab").rglob("*.py"))[:40]
    rows = [{"text": path.read_text(encoding="utf-8")[:2000]} for path in sources if path.stat().st_size]
    (folder / CORPUS).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / EMBEDDER).symlink_to(tiny_bert)
    return folder


def small(arguments: Iterable[str]) -> list[str]:
    """Return the overrides that make a command small, but for those that it gives itself."""
    given = {argument.partition("=")[0].lstrip("+~") for argument in arguments}
    settings = {key: value for key, value in SMALL.items() if key not in given}
    others = [
        found[1] for argument in arguments if (found := re.match(r"\+corpus@(corpora\.\w+)=python_source", argument))
    ]
    settings |= {f"{other}.max_bytes": "1e5" for other in others}
    return [*(f"{key}={value}" for key, value in settings.items()), f"embedder.model={EMBEDDER}"]


def run(arguments: Iterable[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process, which has torch loaded, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["retro-lab", *arguments])
    environment = dict(os.environ)
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        HydraConfig.instance().cfg = None
        # A DDP strategy names its port there, which commands of later tests would take for theirs.
        os.environ.clear()
        os.environ.update(environment)
    return 0


def run_in(
    folder: Path, arguments: Iterable[str], environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process and a folder; return what it printed, and its exit code."""
    printed, messages, arguments = io.StringIO(), io.StringIO(), list(arguments)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(messages):
        patch.chdir(folder)
        for name, value in environment.items():
            patch.setenv(name, value)
        code = run(arguments, patch)
    return subprocess.CompletedProcess(arguments, code, printed.getvalue(), messages.getvalue())
