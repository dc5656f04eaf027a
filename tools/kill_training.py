"""Kills a training run again and again, and compares its weights with those of a run that nothing disturbed.

    python tools/kill_training.py --kills 20 --workers 2 task=train data.micro_batch_size=2 ... [more overrides]

The overrides are those of a command that trains one model. It runs twice in the current folder, once undisturbed, and
once with `kill -9` at random moments after which it is started again. The exit code is 0 if weights, optimizer,
schedule and validation curve are equal to the last bit.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import runpy
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from retro_lab.errors import PreemptedError
from retro_lab.training.checkpoints import CHECKPOINT, PREVIOUS_NAME, read_checkpoint, sealed_file

SLOW_TO_IMPORT = (
    "pytorch_lightning", "transformers.models.bert.modeling_bert", "faiss", "pyarrow.parquet", "hydra.main", "wandb",
    "retro_lab.tasks.train", "retro_lab.report.build", "matplotlib.pyplot", "pandas",
)  # fmt: skip
"""Imported once, so that an attempt, which is a fork, begins at once."""
RESTING, PAUSE, DEADLINE = 0.002, 0.05, 240.0
"""Seconds between looks at a checkpoint, from a new one to the signal at most, and until an attempt is given up."""


class Attempt:
    """The processes of one attempt at a command: as many ranks as `torchrun` would start."""

    def __init__(self, arguments: Sequence[str], ranks: int, log: Path) -> None:
        """Start the command; its ranks write to `log`."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [_fork(arguments, rank, ranks, port, log) for rank in range(ranks)]
        self.statuses: dict[int, int] = {}

    def running(self) -> bool:
        """Return whether any rank is still running."""
        for process in self.processes:
            if process not in self.statuses:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    self.statuses[process] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) < len(self.processes)

    def send(self, number: signal.Signals, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to some ranks, or to all."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            if self.processes[rank] not in self.statuses:
                os.kill(self.processes[rank], number)

    def wait(self) -> list[int]:
        """Return the exit codes, of each rank, once all have ended."""
        deadline = time.monotonic() + DEADLINE
        while self.running():
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
            time.sleep(RESTING)
        return [self.statuses[process] for process in self.processes]


def _fork(arguments: Sequence[str], rank: int, ranks: int, port: int, log: Path) -> int:
    child = os.fork()
    if child:
        return child
    if ranks > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "kill_training"}
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    sys.argv[1:] = arguments
    try:
        runpy.run_module("retro_lab", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def undisturbed(arguments: Sequence[str], ranks: int, log: Path) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: It failed.
    """
    codes = Attempt(arguments, ranks, log).wait()
    if any(codes):
        raise RuntimeError(f"exit codes {codes}:\n{log.read_text()[-3000:]}")


def disturbed(
    arguments: Sequence[str],
    ranks: int,
    log: Path,
    checkpoint: Path,
    kills: int,
    generator: random.Random,
    signals: Sequence[signal.Signals],
) -> Iterator[str]:
    """Run a command with `signals` at random moments, each after at least one new checkpoint; yield what happened.

    `signals` take turns. Of several ranks, a random one gets the signal first. After a SIGKILL the others get it within
    half a second.

    Raises:
        RuntimeError: The command failed otherwise, or came to its end too early.
    """
    for kill in range(kills):
        attempt, number = Attempt(arguments, ranks, log), signals[kill % len(signals)]
        for _ in range(generator.randint(1, 2)):
            _next_checkpoint(attempt, checkpoint)
        time.sleep(generator.uniform(0, PAUSE))
        attempt.send(number, [generator.randrange(ranks)])
        if number == signal.SIGKILL:
            time.sleep(generator.uniform(0, 0.5) if ranks > 1 else 0)
            attempt.send(number)
        codes = attempt.wait()
        if not any(codes):
            raise RuntimeError(f"the command ended before signal {kill + 1} of {kills}; train for longer")
        if (-signal.SIGKILL if number == signal.SIGKILL else PreemptedError.exit_code) not in codes:
            raise RuntimeError(f"exit codes {codes}:\n{log.read_text()[-3000:]}")
        yield f"{number.name} {kill + 1}: exit codes {codes}, step {read_checkpoint(whole(checkpoint))['global_step']}"
    undisturbed(arguments, ranks, log)


def whole(checkpoint: Path) -> Path:
    """Return the checkpoint, or the one before it if the process was killed between two renames."""
    return checkpoint if checkpoint.exists() else checkpoint.with_name(PREVIOUS_NAME)


def _next_checkpoint(attempt: Attempt, checkpoint: Path) -> None:
    def written() -> int:
        sealed = sealed_file(checkpoint)
        return sealed.stat().st_mtime_ns if sealed else 0

    before, deadline = written(), time.monotonic() + DEADLINE
    while written() in (0, before) and attempt.running() and time.monotonic() < deadline:
        time.sleep(RESTING)


def checksums(model: Path) -> dict[str, Any]:
    """Return a checksum of each part of a model's last checkpoint that decides its further training, and its curve."""
    state = read_checkpoint(model / CHECKPOINT)
    parts = {name: _checksum(state[name]) for name in ("state_dict", "optimizer_states", "lr_schedulers")}
    curve = json.loads((model / "result.json").read_text())["curve"]
    return parts | {"curve": _checksum(curve), "step": state["global_step"]}


def _checksum(value: Any) -> str:
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for element in value:
                add(element)
        elif isinstance(value, torch.Tensor):
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())

    add(value)
    return digest.hexdigest()[:16]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signals", default="SIGKILL", help="which take turns; SIGKILL,SIGTERM also asks to stop")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train, on gloo")
    parser.add_argument("--strategy", default="ddp", choices=["ddp", "fsdp"], help="of several ranks")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--model", default="retro", help="the model's folder in its run's folder: retro or baseline")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of the two runs")
    options, overrides = parser.parse_known_args()
    for module in SLOW_TO_IMPORT:
        importlib.import_module(module)
    overrides += [f"paths.outputs={options.outputs}"]
    overrides += [f"data.workers={options.workers}"]
    if options.ranks > 1:
        overrides += [f"trainer={options.strategy}", "trainer.accelerator=cpu", f"trainer.devices={options.ranks}"]
        overrides += ["trainer.precision=32-true"]
    generator = random.Random(options.seed)
    models, log = {}, Path("kill_training.log").resolve()
    for name in ("undisturbed", "killed"):
        models[name] = options.outputs / name / options.model
        arguments = [*overrides, f"name={name}"]
        if name == "undisturbed":
            undisturbed(arguments, options.ranks, log)
        else:
            checkpoint, signals = models[name] / CHECKPOINT, [signal.Signals[it] for it in options.signals.split(",")]
            for line in disturbed(arguments, options.ranks, log, checkpoint, options.kills, generator, signals):
                print(line, flush=True)
    found = {name: checksums(model) for name, model in models.items()}
    print(json.dumps(found, indent=1))
    equal = found["undisturbed"] == found["killed"]
    print("equal" if equal else "DIFFERENT")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
