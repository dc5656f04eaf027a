"""Signals that ask a command to stop: SLURM's before a time limit or a requeue, or a plain `kill`.

A handler interrupts whatever is running, so it saves nothing: it only sets a flag while a training loop watches for it.
The loop saves a checkpoint once its step is whole (`retro_lab.training.stopping`). All other work can be stopped at any
moment, as with Ctrl-C, and is.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from retro_lab.errors import PreemptedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""All signals that may ask a command to stop."""

_watching = False
_received: signal.Signals | None = None


@contextmanager
def handled(*signals: signal.Signals) -> Iterator[None]:
    """Have `signals` set a flag where a training loop watches for it, and raise `PreemptedError` elsewhere.

    Handlers can be installed in the main thread only.

    Raises:
        PreemptedError: One of `signals` arrived.
    """
    global _received
    _received = None
    before = {number: signal.signal(number, _receive) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def watched() -> Iterator[None]:
    """Have the signals only set the flag, for a training loop that looks at `requested`.

    Raises:
        PreemptedError: At the end, if the loop came to its own end without looking at the flag again.
    """
    global _watching
    _watching = True
    try:
        yield
    finally:
        _watching = False
    if _received is not None:
        raise PreemptedError(_stopped(_received))


def requested() -> signal.Signals | None:
    """Return the signal that asked this process to stop, or None."""
    return _received


def outlive_signals() -> None:
    """Have a helper process outlive the signals, which SLURM sends to all processes of a job.

    Only a second SIGTERM ends it: its parent's, if it does not end when asked to.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _receive(number: int, frame: FrameType | None) -> None:
    global _received
    _received = signal.Signals(number)
    if not _watching:
        raise PreemptedError(_stopped(_received))


def _stopped(received: signal.Signals) -> str:
    return f"Stopped by {received.name}; the same command goes on from here."
