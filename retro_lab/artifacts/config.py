"""The `build` group: who builds the shards of a stage."""

from dataclasses import dataclass
from enum import StrEnum

from retro_lab.ranges import POSITIVE, check_ranges


class DispatcherName(StrEnum):
    """The dispatchers by name."""

    ranks = "ranks"
    ray = "ray"
    slurm = "slurm"


@dataclass(kw_only=True)
class BuildConfig:
    """Who builds the shards of a stage; what is built does not depend on it."""

    dispatcher: DispatcherName = DispatcherName.ranks
    """Ranks: this process, and every other one that runs the same command (torchrun, srun). Ray: workers of a Ray
    cluster (needs retro_lab[ray]). Slurm: `retro-lab submit task=build` submits an array of jobs."""
    workers: int | None = None
    """Workers of Ray, or jobs of the array, for which it must be a number; null takes, of Ray, all GPUs, or all cores
    where there are none."""
    ray_address: str = "local"
    """Address of a Ray cluster, or auto for the one that this machine belongs to; local starts one here for as long as
    the command runs."""
    ray_cpus: int = 1
    """Cores of each of Ray's workers."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges("build", self, workers=POSITIVE, ray_cpus=POSITIVE)
