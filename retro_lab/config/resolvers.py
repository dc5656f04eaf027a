"""Functions that configuration files call, as in `${run_name:}`."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from retro_lab.config.naming import override_key, slug
from retro_lab.errors import ConfigurationError

FOLDERLESS_TASKS = ("build", "inspect", "plan", "verify")
"""Tasks that write to the artifact store or to the screen alone."""


def run_name(*, _root_: DictConfig) -> str:
    """Resolve `${run_name:}`: `name` if it is given, else what the run's overrides spell."""
    return OmegaConf.select(_root_, "name") or slug(_run_overrides(_root_))


def run_dir(*, _root_: DictConfig) -> str:
    """Resolve `${run_dir:}`: the folder that a run writes to; the working directory for one that writes none."""
    if _root_.task.name in FOLDERLESS_TASKS:
        return "."
    return f"{_root_.paths.outputs}/{run_name(_root_=_root_)}"


def cell_name(*axes: str, _root_: DictConfig) -> str:
    """Resolve `${cell_name:AXIS,...}`: what is special about a cell, on those axes and on the sweep file's own."""
    overrides = _run_overrides(_root_)
    varied = {key.lstrip("+") for key in (*axes, *(OmegaConf.select(_root_, "hydra.sweeper.params") or ()))}
    special = [override for override in overrides if override_key(override) in varied]
    # Whatever varies tells cells apart, be it a setting that would not move a run to another folder.
    return slug(special, ignored=()) if special else slug(overrides)


def group_name(*, _root_: DictConfig) -> str:
    """Resolve `${group_name:}`: the sweep that a run belongs to, else its own name."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).name
    return run_name(_root_=_root_)


def tokens_of_steps(steps: int, *, _root_: DictConfig) -> int:
    """Resolve `${tokens_of_steps:N}`: the tokens in N optimizer steps."""
    return steps * int(_root_.data.sequence_length) * int(_root_.data.batch_size)


def layers_from(first: int, step: int, *, _root_: DictConfig) -> list[int]:
    """Resolve `${layers_from:FIRST,STEP}`: decoder layers FIRST, FIRST + STEP, ... up to the last.

    Raises:
        ConfigurationError: The decoder has no layer FIRST; no layer at all would silently be the baseline.
    """
    layers = int(_root_.size.layers)
    if first > layers:
        raise ConfigurationError(
            f"Chunked cross-attention from layer {first} on needs as many layers; size.layers={layers}. Choose another "
            "cca, or name the layers, as in size.cca_layers=[2,4]."
        )
    return list(range(first, layers + 1, step))


def middle_layer(*, _root_: DictConfig) -> int:
    """Resolve `${middle_layer:}`: the middle decoder layer, 6 of 12."""
    return max(1, int(_root_.size.layers) // 2)


def equal_widths(*, _root_: DictConfig) -> bool:
    """Resolve `${equal_widths:}`: whether decoder and encoder are of one width, and can share their embeddings."""
    return bool(_root_.size.width == _root_.size.encoder_width)


def tasks_per_node(*, _root_: DictConfig) -> int:
    """Resolve `${tasks_per_node:}`: the processes that SLURM starts on a node, one for each device.

    Raises:
        ConfigurationError: `trainer.devices` is not a number, which SLURM has to know beforehand.
    """
    devices: Any = _root_.trainer.devices
    if not isinstance(devices, int) or devices < 1:
        raise ConfigurationError(f"trainer.devices={devices} is no number of devices, which SLURM wants; as in 8.")
    return devices


def gpus_per_node(*, _root_: DictConfig) -> int | None:
    """Resolve `${gpus_per_node:}`: none where the processor trains, else one for each process."""
    return None if _root_.trainer.accelerator == "cpu" else tasks_per_node(_root_=_root_)


RESOLVERS = (
    run_name, run_dir, cell_name, group_name, tokens_of_steps, layers_from, middle_layer, equal_widths,
    tasks_per_node, gpus_per_node,
)  # fmt: skip


def register() -> None:
    """Make the resolvers known to OmegaConf; may be called again."""
    for resolver in RESOLVERS:
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def _run_overrides(root: DictConfig) -> list[str]:
    node = OmegaConf.select(root, "hydra.overrides.task")
    if node is None and HydraConfig.initialized():  # a job's own configuration has no hydra node
        node = HydraConfig.get().overrides.task
    # As written: what looks like an interpolation here is the value of an override.
    overrides = [] if node is None else OmegaConf.to_container(node, resolve=False)
    assert isinstance(overrides, list)
    return overrides
