"""Which of several processes this one is, according to the launcher: `torchrun`, `srun` or Lightning, if any."""

import os
from dataclasses import dataclass

LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),  # srun
    ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_RANK"),  # the processes that Lightning starts by itself
)
"""Environment variables for a process's rank, the number of processes, and its rank on its machine. The first set
counts, so that `torchrun` under `srun` is `torchrun`."""
ARRAY = (("SLURM_ARRAY_TASK_ID", "0"), ("SLURM_ARRAY_TASK_COUNT", "1"))
"""Environment variables for a task's number in its job array and the number of tasks, and what they are without one."""


@dataclass(frozen=True)
class Process:
    """Numbers of a process, from 0: among the `world` of all processes, and among those on its machine."""

    rank: int
    world: int
    local_rank: int


def current() -> Process:
    """Return this process; it is the only one unless a launcher says otherwise."""
    for rank, world, local_rank in LAUNCHERS:
        if rank in os.environ:
            number = int(os.environ[rank])
            return Process(number, int(os.environ.get(world, number + 1)), int(os.environ.get(local_rank, 0)))
    return Process(0, 1, 0)


def position() -> float:
    """Return where this process stands among all that a launcher started, and in a job array: from 0 to below 1."""
    here = current()
    world = max(here.world, 1)
    task, tasks = (int(os.environ.get(name, default)) for name, default in ARRAY)
    return (task % tasks * world + here.rank % world) / (tasks * world)
