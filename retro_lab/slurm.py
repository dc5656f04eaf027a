"""SLURM's own commands, and the scripts that they are given.

Nothing of submitit is used: its jobs unpickle what they run, and catch SLURM's signal to queue themselves again, where
a training has to save its state first and only one side may decide about the queue.
"""

import getpass
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping

from retro_lab.errors import ClusterError

DEFAULT_MAX_ARRAY_SIZE = 1001
"""SLURM's own default of MaxArraySize; indices of an array's tasks are below it."""
SECONDS = 60
"""How long a command may wait for SLURM's controller."""


def available() -> bool:
    """Return whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def job_id() -> str:
    """Return the id of the job that this process belongs to, as `squeue` shows it: `12`, or `12_3` in an array."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def script(options: Mapping[str, object], others: Iterable[str], commands: Iterable[str]) -> str:
    """Return a batch script.

    Args:
        options: Long options of sbatch by name; None leaves one out, and True gives it without a value.
        others: Further options as they are written on a command line.
        commands: Lines for the shell.
    """
    given = [
        f"--{name}" if value is True else f"--{name}={shlex.quote(str(value))}"
        for name, value in options.items()
        if value is not None
    ]
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in [*given, *others]), "", *commands]
    return "\n".join(lines) + "\n"


def sbatch(text: str) -> str:
    """Submit a script and return the job's id.

    Raises:
        ClusterError: SLURM refuses it, for example for a partition that does not exist.
    """
    # A submission from within a job must not inherit the shape of that job.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"
    }
    return _run(["sbatch", "--parsable"], text=text, environment=environment).strip().partition(";")[0]


def queue() -> dict[str, str]:
    """Return the state, such as `PENDING`, of each of the user's jobs that has not ended; each array task is one.

    Raises:
        ClusterError: SLURM does not answer.
    """
    listed = _run(["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T"])
    return dict(line.strip().split("|", 1) for line in listed.splitlines() if "|" in line)


def requeue(job: str) -> None:
    """Queue a running job again, which ends it here.

    Raises:
        ClusterError: SLURM refuses.
    """
    _run(["scontrol", "requeue", job])


def max_array_size() -> int:
    """Return how many tasks an array may have."""
    try:
        settings = _run(["scontrol", "show", "config"])
    except ClusterError:
        return DEFAULT_MAX_ARRAY_SIZE
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", settings, flags=re.MULTILINE)
    return int(found[1]) if found else DEFAULT_MAX_ARRAY_SIZE


def _run(command: list[str], text: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except FileNotFoundError as error:
        raise ClusterError(f"There is no {command[0]} on this machine; log in to one of a SLURM cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{command[0]} got no answer from SLURM's controller in {SECONDS} seconds.") from error
    if done.returncode:
        raise ClusterError(f"{command[0]} failed: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout
