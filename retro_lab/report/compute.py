"""What retrieval is worth in compute: the FLOPs that the baseline would need to be as good as RETRO.

A model's loss falls with its training FLOPs roughly as a power law (Kaplan et al. 2020), L = a C^-b; two baselines,
one trained for longer than the other, give a and b. The FLOPs at which that line reaches RETRO's loss, over those that
RETRO took, are the compute multiplier: above 1, retrieval is the better way to spend compute.
"""

import math
from dataclasses import dataclass

from retro_lab.report import formats
from retro_lab.report.comparison import ON
from retro_lab.runs.records import ModelRecord, RunRecord


@dataclass(frozen=True)
class ComputeMultiplier:
    """How many times RETRO's training FLOPs the baseline needs to be as good as RETRO."""

    needed: float
    """FLOPs that the baseline needs."""
    extrapolated: bool
    """Whether they are outside the range of the two baselines."""
    of_training: float
    """The multiplier, with the model's training alone counted."""
    with_database: float | None
    """The multiplier, with embedding and search counted too; None if their FLOPs are not known."""


def compute_multiplier(run: RunRecord) -> ComputeMultiplier | None:
    """Compare RETRO[On] with the line through both baselines; None where there is no line that falls."""
    retro = run.retro
    points = [_point(run.baseline, 0), _point(run.longer_baseline, 0)]
    reached = _point(retro, retro.k) if retro else None
    if retro is None or reached is None or None in points or len({model.main_text for model in run.models}) > 1:
        return None
    (flops, level), (more_flops, lower) = (point for point in points if point)
    if not (more_flops > flops and 0 < lower < level):
        return None
    exponent = math.log(level / lower) / math.log(more_flops / flops)
    needed = flops * (level / reached[1]) ** (1 / exponent)
    database = retro.database.flops if retro.database else None
    return ComputeMultiplier(
        needed,
        not flops <= needed <= more_flops,
        needed / retro.flops,
        None if database is None else needed / (retro.flops + database),
    )


def compute_sentence(run: RunRecord) -> str | None:
    """Say what the multiplier is; None where there is none."""
    found = compute_multiplier(run)
    if found is None:
        return None
    how = "extrapolated by" if found.extrapolated else "by"
    counted = ""
    if found.with_database is not None:
        counted = (
            f", {formats.ratio(found.with_database)} times with the embedding of the database and the search counted"
        )
    return (
        f"Compute multiplier: the baseline would need {formats.flops(found.needed)} FLOPs to be as good as {ON} ("
        f"{how} a power law through both baselines), {formats.ratio(found.of_training)} times those of RETRO's "
        f"training{counted}."
    )


def _point(model: ModelRecord | None, k: int) -> tuple[float, float] | None:
    entry = model.evaluation(k) if model else None
    return (model.flops, entry.bits_per_byte) if model and entry else None
