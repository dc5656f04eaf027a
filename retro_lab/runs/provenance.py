"""How a result came about: command, date, hardware, commit, versions."""

import os
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from retro_lab.runs.command import typed_command
from retro_lab.runs.records import Provenance

LIBRARIES = ("retro_lab", "torch", "pytorch-lightning", "faiss-cpu", "transformers", "datasets", "tokenizers")


def provenance() -> Provenance:
    """Describe this process."""
    return Provenance(
        command=typed_command(),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        hardware=hardware(),
        commit=_commit(),
        versions={name: version for name in LIBRARIES if (version := _version(name))},
    )


def hardware() -> str:
    """Name the GPUs, or else the CPU, with their number, and the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        device = f"{os.cpu_count()} x {_processor()}"
    return f"{device}, {memory:.0f} GiB"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that the package runs from, marked as dirty if files have changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
