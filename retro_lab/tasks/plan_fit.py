"""Which trainer fits into the memory of the GPUs: the part of `task=plan` that proposes a configuration."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from retro_lab.cost.memory import TrainingState
from retro_lab.tasks.plan_tables import BYTES, scaled

USABLE = 0.9
"""Share of a GPU's memory for what is counted; the rest is left to the CUDA context, communication and fragments."""


@dataclass(frozen=True)
class Gpus:
    """The GPUs to train on."""

    each: int | None
    """Of a node; None for all of them."""
    nodes: int
    total: int
    memory: float
    """Bytes of one."""


def fitting(
    gpus: Gpus,
    precision: str,
    states: dict[str, TrainingState],
    activations: Callable[[int, bool], float],
    batch_size: int,
) -> str:
    """Return the overrides that fit and are fastest, or a sentence that says why none do.

    Everything is tried without checkpointed activations first, then with them; under DDP first, then under FSDP; with
    as many sequences at a time as fit.

    Args:
        gpus: To train on.
        precision: Lightning's name.
        states: Of a GPU, by `trainer`: the fastest first.
        activations: Returns the bytes of a number of sequences, with checkpointing or without.
        batch_size: Sequences of a global batch.
    """
    usable = USABLE * gpus.memory
    for checkpointing, (trainer, state), sequences in _choices(states, -(-batch_size // gpus.total)):
        needed = state.total + activations(sequences, checkpointing)
        if needed <= usable:
            overrides = [f"trainer={trainer}", f"trainer.devices={-1 if gpus.each is None else gpus.each}"]
            overrides += [f"trainer.num_nodes={gpus.nodes}"] * (gpus.nodes > 1)
            overrides += [f"trainer.precision={precision}"] * (precision != "bf16-mixed")
            overrides += [f"data.micro_batch_size={sequences}"]
            overrides += ["compute.checkpoint_activations=true"] * checkpointing
            return f"{' '.join(overrides)} takes {scaled(needed, BYTES)} of {scaled(gpus.memory, BYTES)}"
    trainer, state = min(states.items(), key=lambda one: one[1].total)
    least = state.total + activations(1, True)
    sentence = (
        f"nothing fits: trainer={trainer} takes {scaled(least, BYTES)} even with one sequence at a time and "
        f"checkpointed activations, more than {USABLE:.0%} of task.gpu_memory={scaled(gpus.memory, BYTES)}"
    )
    fsdp = states.get("fsdp")
    left = usable - fsdp.copies - activations(1, True) if fsdp else 0
    if not fsdp or left <= 0:
        return f"{sentence}; use a smaller size, shorter sequences, or GPUs with more memory"
    enough = math.ceil(gpus.total * (fsdp.total - fsdp.copies) / left)
    if enough > batch_size:
        return f"{sentence}; use a smaller size, GPUs with more memory, or a data.batch_size of {enough:,} or more"
    enough = next(count for count in range(enough, batch_size + 1) if batch_size % count == 0)
    return f"{sentence}; use trainer=fsdp on {enough:,} GPUs or more"


def _choices(states: dict[str, TrainingState], share: int) -> Iterator[tuple[bool, tuple[str, TrainingState], int]]:
    for checkpointing in (False, True):
        for choice in states.items():
            for sequences in range(share, 0, -1):
                if share % sequences == 0:
                    yield checkpointing, choice, sequences
