"""The spread of a sweep's gains over the seeds of the training (`-m seed=0,1,2`)."""

import statistics
from collections import defaultdict

from retro_lab.report import formats
from retro_lab.report.comparison import cell_scores, gain
from retro_lab.runs.sweeps import SweepRecord

SEED = "seed"


def seed_sentences(sweep: SweepRecord) -> list[str]:
    """Say the mean gain and its standard deviation over seeds, for all cells that differ in the seed alone.

    Raises:
        ArtifactError: The chunks' scores cannot be read.
    """
    if SEED not in sweep.axes:
        return []
    others = [axis for axis in sweep.axes if axis != SEED]
    gains = defaultdict[tuple[str | None, ...], list[float]](list)
    for cell in sweep.cells:
        reference, _, on = cell_scores(sweep, cell)
        if difference := gain(on, reference):
            gains[tuple(cell.overrides.get(axis) for axis in others)].append(difference.bits_per_byte)
    said = []
    for values, found in gains.items():
        where = ", ".join(f"{axis}={value}" for axis, value in zip(others, values, strict=True))
        if len(found) > 1:
            spread = f"{formats.signed_score(statistics.mean(found))}, standard deviation {statistics.stdev(found):.3f}"
            said.append(f"{f'{where}: ' if where else ''}mean gain of {len(found)} seeds {spread} bits per byte.")
    return said
