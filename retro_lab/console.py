"""What the user sees: status lines, progress bars and tables, without the messages of libraries.

Only rank 0 prints, except errors. Progress goes to standard error, so that standard output contains only results.
"""

import io
import logging
import os
import re
import sys
import time
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from retro_lab import ranks


class Advance(Protocol):
    """Advances a progress bar."""

    def __call__(self, count: int, note: str | None = None) -> None:
        """Add `count` units; `note`, if given, is shown at the end of the bar from now on."""


CHATTY_LIBRARIES = (
    "pytorch_lightning", "lightning", "lightning_fabric", "lightning.pytorch", "transformers", "datasets", "wandb",
    "huggingface_hub", "httpx", "fsspec", "faiss", "bm25s", "filelock", "torch", "matplotlib", "lm_eval",
)  # fmt: skip
WARNING_LIBRARIES = (
    *CHATTY_LIBRARIES, "datasketch", "hydra", "multiprocessing", "numpy", "omegaconf", "pandas", "pyarrow", "pydantic",
    "retro_lab", "tensorboard", "torchmetrics",
)  # fmt: skip
"""Packages whose warnings are hidden; ours is among them, as libraries attribute warnings to their callers."""

BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the order in which the text around them is shown."""
LINE_SECONDS = 30.0
"""Seconds between lines of progress if standard error is not a terminal."""


def is_main_process() -> bool:
    """Return whether this process is rank 0, or the only one."""
    return ranks.current().rank == 0


class Messages(Console):
    """Standard error, which may be closed at the other end."""

    def on_broken_pipe(self) -> None:
        """Print nothing more and continue; Rich itself would end the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Results(Console):
    """Standard output, to which rank 0 alone prints."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as Rich does, or nothing on other ranks: a launcher may set the rank after this module's import."""
        if is_main_process():
            super().print(*objects, **options)


output = Results()
messages = Messages(stderr=True)


def visible(text: str) -> str:
    r"""Return text with terminal control characters and lone surrogates as escapes such as `\x1b`."""
    return "".join(
        ascii(character)[1:-1]
        if character not in "\n\t" and (unicodedata.category(character) in ("Cc", "Cs") or character in BIDIRECTIONAL)
        else character
        for character in text
    )


def quiet() -> None:
    """Hide messages of libraries that a user cannot act on, but not their errors.

    A character that the terminal's encoding lacks is replaced, so that it cannot end the run.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    names = "|".join(map(re.escape, WARNING_LIBRARIES))
    warnings.filterwarnings("ignore", module=rf"({names})(\.|$)")
    quiet_loggers()
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def quiet_loggers() -> None:
    """Let libraries log only errors; call it again after importing Lightning, which resets its loggers."""
    for name in CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def silence() -> Iterator[None]:
    """Print no messages: for a caller who is not at the command line."""
    before, messages.quiet = messages.quiet, True
    try:
        yield
    finally:
        messages.quiet = before


def error(sentence: str) -> None:
    """Print an error, with the rank if there are several processes."""
    rank = ranks.current().rank
    prefix = f"error on rank {rank}: " if rank else "error: "
    messages.print(Text.assemble((prefix, "bold red"), visible(sentence)), soft_wrap=True)


def status(subject: str, message: str) -> None:
    """Print one line of the form `subject  message`."""
    if is_main_process():
        messages.print(Text.assemble((f"{subject:<11} ", "bold cyan"), visible(message)), soft_wrap=True)


class RateColumn(ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        """Show rates in `unit` per second."""
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Show the rate, or a dash before the first unit is done."""
        speed = task.finished_speed or task.speed
        return Text(f"{_rate(speed)} {self.unit}/s" if speed else "-", style="progress.data.speed")


@contextmanager
def progress(subject: str, unit: str, total: int, completed: int = 0) -> Iterator[Advance]:
    """Show a bar with count, rate and time left; yields the function that advances it by a number of units.

    If standard error is not a terminal but a log file, print a line every half minute instead.
    """
    if not messages.is_terminal:
        yield _lines(subject, unit, total, completed)
        return
    columns = (
        TextColumn("[bold cyan]{task.description:<12}"), BarColumn(), MofNCompleteColumn(), RateColumn(unit),
        TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=messages, disable=not is_main_process()) as bar:
        task = bar.add_task(subject, total=total, completed=completed, note="")

        def advance(count: int, note: str | None = None) -> None:
            if note is not None:
                bar.update(task, note=note)
            bar.advance(task, count)

        yield advance


def _lines(subject: str, unit: str, total: int, completed: int) -> Advance:
    """Return a function that prints a line of progress every `LINE_SECONDS`."""
    begun = said = time.monotonic()
    done, last_note = completed, ""

    def advance(count: int, note: str | None = None) -> None:
        nonlocal done, said, last_note
        done += count
        last_note = last_note if note is None else note
        now = time.monotonic()
        if now - said < LINE_SECONDS:
            return
        said = now
        rate = (done - completed) / (now - begun)
        left = f"{timedelta(seconds=round((total - done) / rate))} left" if rate else ""
        parts = [f"{done:,} of {total:,} {unit}", f"{_rate(rate)} {unit}/s", left, last_note]
        status(subject, ", ".join(part for part in parts if part))

    return advance


def _rate(rate: float) -> str:
    """Show a rate: whole where it is large, with two digits where that would be little or nothing."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
