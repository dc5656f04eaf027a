"""Learning rate: linear warm-up, then one cosine cycle over all training tokens (Borgeaud et al. 2022, App. C.1)."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupCosine:
    """Learning rate at a step, as a share of the peak.

    Attributes:
        steps: Optimizer steps of the whole cycle.
        warmup_steps: Requested steps from `start_ratio` to 1.
        start_ratio: Share at step 0.
        final_ratio: Share at the last step.
    """

    steps: int
    warmup_steps: int
    start_ratio: float
    final_ratio: float

    @property
    def warmup(self) -> int:
        """Steps from `start_ratio` to 1: as many as requested, but at most a tenth of the run."""
        return min(self.warmup_steps, self.steps // 10)

    def __call__(self, step: int) -> float:
        """Return the share at `step`, counted from 0."""
        warmup = self.warmup
        if step < warmup:
            return self.start_ratio + (1 - self.start_ratio) * step / warmup
        progress = min(1.0, (step - warmup) / max(1, self.steps - warmup))
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
