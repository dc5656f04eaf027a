"""Refuse a training step that does not fit into this machine's memory, before the kernel kills the process.

The check uses a lower bound: weights, the moments of AdamW, and either gradients or the activations that
`retro_lab.cost.memory` counts. A refused step would surely fail; an accepted one may still need too much.
"""

import os
from pathlib import Path

import torch

from retro_lab.cost.memory import least_bytes
from retro_lab.errors import ConfigurationError
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.tasks.assemble import model_parameters
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.plan_tables import BYTES, scaled
from retro_lab.training.precision import PRECISIONS, checked_precision, on_processor

CONTROL_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
MEMORY_TABLE = Path("/proc/meminfo")


def check_memory(config: RunConfig, size: SizeConfig, model: ModelConfig, sequences: int, devices: int) -> None:
    """Compare the memory that one step needs with the memory of this machine.

    Args:
        config: The whole configuration, checked.
        size: Of the model; without `cca_layers` for a baseline.
        model: Choices that do not depend on the size.
        sequences: Sequences that one device holds at a time.
        devices: Devices of all nodes.

    Raises:
        ConfigurationError: The step needs more than there is.
    """
    accelerator = str(config.trainer.get("accelerator", "auto"))
    available = memory(accelerator)
    k = config.retrieval.k if size.cca_layers else 0
    # Strategies other than these may shard the state between devices.
    copied = str(config.trainer.get("strategy", "auto")).startswith(("auto", "ddp"))
    state, activations = least_bytes(
        model_parameters(config, size, getattr(config.tokenizer, "vocabulary_size", 1)),
        size,
        model,
        PRECISIONS[checked_precision(config.trainer.get("precision"), accelerator)],
        sequences=sequences,
        sequence_length=config.data.sequence_length,
        k=k,
        neighbor_length=config.retrieval.value.length(model.chunk_length),
        # A compiler may recompute anything, so the lower bound is the one with checkpointing.
        checkpointing=config.compute.checkpoint_activations or config.compute.compile,
        frozen=config.init.freezes and bool(size.cca_layers),
        moments=config.optimizer._target_ == "torch.optim.AdamW",
        devices=devices,
        sharded=not copied,
    )
    here = max(1, devices // config.trainer.get("num_nodes", 1)) if on_processor(accelerator) else 1  # share memory
    if available is None or here * (state + activations) <= available:
        return
    where = f"{scaled(available, BYTES)} of {'this machine' if on_processor(accelerator) else 'a GPU'}"
    if here * state > available:
        raise ConfigurationError(
            f"size={size.name} takes at least {scaled(here * state, BYTES)} for weights and AdamW's moments, more than "
            f"the {where}; use a smaller size."
        )
    raise ConfigurationError(
        f"data.batch_size={config.data.batch_size} makes {sequences:,} sequences of data.sequence_length="
        f"{config.data.sequence_length} tokens at a time, with retrieval.k={k} neighbors; a step then takes at least "
        f"{scaled(here * (state + activations), BYTES)}, more than the {where}; lower one of the three, or set "
        "data.micro_batch_size, which divides the batch into smaller pieces."
    )


def memory(accelerator: str) -> int | None:
    """Return the bytes of the machine's memory and swap space, or of its largest GPU; None if unknown."""
    if torch.cuda.is_available() and not on_processor(accelerator):
        return max(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))
    if not on_processor(accelerator):
        return None
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    if MEMORY_TABLE.is_file():
        rows = dict(line.split(":", 1) for line in MEMORY_TABLE.read_text(encoding="ascii").splitlines() if ":" in line)
        total += 1024 * int(rows.get("SwapTotal", "0").split()[0])
    if CONTROL_GROUP_LIMIT.is_file() and (limit := CONTROL_GROUP_LIMIT.read_text(encoding="ascii").strip()).isdecimal():
        total = min(total, int(limit))
    return total
