"""Which of several processes this one is, as the launcher (`torchrun`, `srun`, Lightning, or nobody) says."""

import os
from dataclasses import dataclass

LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),  # srun
    ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_RANK"),  # the processes that Lightning starts by itself
)
"""Variables with a process's number, how many there are, and its number on its machine; the first that is set counts,
so that `torchrun` under `srun` is `torchrun`."""


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
