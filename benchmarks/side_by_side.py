"""Measuring contestants in turns, so that a machine that slows down slows all of them."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from retro_lab.runs.provenance import hardware

MATRIX = 2048
"""Rows and columns of the matrices whose product is a device's peak."""


class Clock:
    """Seconds of work: processor time of this process, or time on the GPU."""

    def __init__(self, device: torch.device) -> None:
        """Measure work on `device`."""
        self.device = device

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds that one call of `work` takes."""
        if self.device.type == "cpu":
            start = time.process_time()
            work()
            return time.process_time() - start
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        work()
        end_event.record()
        torch.cuda.synchronize()
        return start_event.elapsed_time(end_event) / 1000

    def in_turns(self, contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        """Return the median seconds of each contestant; all have a turn in each round, after one to warm up."""
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(rounds + 1):
            for name, work in contestants.items():
                taken = self.seconds(work)
                if number:
                    times[name].append(taken)
        return {name: statistics.median(taken) for name, taken in times.items()}


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """Return a large matrix product, the peak that a step is held against, and its FLOPs."""
    left, right = (torch.randn(MATRIX, MATRIX, device=device).to(dtype) for _ in range(2))
    return lambda: left @ right, 2.0 * MATRIX**3


def peak_memory(script: str, arguments: Sequence[str]) -> int:
    """Run `script` in a process of its own; it prints the bytes that its work took at the most."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def print_growth(device: torch.device, work: Callable[[], object]) -> None:
    """Print by how many bytes the largest memory of this process, or of the GPU, grows while `work` runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        print(torch.cuda.max_memory_allocated() - before)
        return
    before = _resident("VmRSS")
    work()
    print(_resident("VmHWM") - before)


def _resident(kind: str) -> int:
    """Read the bytes of memory this process has (`VmRSS`) or had at the most (`VmHWM`).

    `getrusage` would count the peak of the process that started this one too.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


@dataclass(frozen=True)
class Row:
    """One measured ratio and what it should be."""

    target: str
    what: str
    against: str
    measured: float
    must: float | None = None
    aim: float | None = None
    smaller_is_better: bool = False

    @property
    def verdict(self) -> str:
        """Which of the two marks was reached."""
        if self.must is None:
            return ""
        reached = (
            (lambda mark: self.measured <= mark) if self.smaller_is_better else (lambda mark: self.measured >= mark)
        )
        if self.aim is not None and reached(self.aim):
            return "aim"
        return "must" if reached(self.must) else "missed"


def markdown(rows: Sequence[Row]) -> str:
    """Lay the ratios out as a table."""
    lines = [
        "| Target | Measured | Against | Ratio | Must | Aim | Reached |",
        "| :-- | :-- | :-- | --: | --: | --: | :-- |",
    ]
    for row in rows:
        bound = "at most" if row.smaller_is_better else "at least"
        must, aim = ("" if mark is None else f"{bound} {mark:g}" for mark in (row.must, row.aim))
        lines.append(
            f"| {row.target} | {row.what} | {row.against} | {row.measured:.3g} | {must} | {aim} | {row.verdict} |"
        )
    return "\n".join(lines)


def origin(device: torch.device) -> str:
    """Say with what command, when, on what and from which commit a table was measured."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    threads = f", {torch.get_num_threads()} thread" if device.type == "cpu" else ""
    return (
        f"`python {' '.join(sys.argv)}`, {datetime.now(UTC):%Y-%m-%d}, {hardware()}{threads}, torch "
        f"{torch.__version__}, commit {commit}"
    )
