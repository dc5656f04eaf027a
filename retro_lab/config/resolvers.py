"""Functions that configuration files call, as in `${run_name:}`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from retro_lab.config.sweeps import cell_folder, varied_keys
from retro_lab.errors import ConfigurationError
from retro_lab.runs.identity import PRECISION
from retro_lab.runs.naming import override_key, slug
from retro_lab.training.config import full_precision


def run_name(*, _root_: DictConfig) -> str:
    """Resolve `${run_name:}`: `name` if it is given, else what the run's overrides spell."""
    precision = OmegaConf.select(_root_, PRECISION)
    return OmegaConf.select(_root_, "name") or slug(named_after(_run_overrides(_root_), precision))


def named_after(overrides: Sequence[str], precision: Any) -> list[str]:
    """Return what a run's folder is named after, before `slug` leaves out what decides nothing.

    A trainer is a choice of hardware, but it may bring a precision, which decides what is trained: then the name says
    which, and not which trainer.

    Args:
        overrides: Of the run.
        precision: What they come to as `trainer.precision`.
    """
    trainer = [text for text in overrides if override_key(text) in ("trainer", PRECISION)]
    others = [text for text in overrides if text not in trainer]
    name = full_precision(precision)
    if not trainer or full_precision(_precision(others)) == name:
        return others
    return [*others, f"{PRECISION}={name}"]


def _precision(overrides: Sequence[str]) -> Any:
    """Compose overrides and return their `trainer.precision`."""
    from retro_lab.config.session import session  # which registers the resolvers

    with session() as assemble:
        return OmegaConf.select(assemble(overrides), PRECISION)


def run_dir(*, _root_: DictConfig) -> str:
    """Resolve `${run_dir:}`: the folder that a run writes to; the working directory for one that writes none."""
    if not _root_.task.name.has_run_folder:
        return "."
    return f"{_root_.paths.outputs}/{run_name(_root_=_root_)}"


def cell_name(*axes: str, _root_: DictConfig) -> str:
    """Resolve `${cell_name:AXIS,...}`: what is special about a cell, on those axes and on the sweep file's own."""
    return cell_folder(_run_overrides(_root_), varied_keys(_root_, axes))


def sibling_cell(axis: str, value: str, *, _root_: DictConfig) -> str:
    """Resolve `${sibling_cell:AXIS,VALUE}`: the folder of the sweep's cell that differs from this one in that alone."""
    hydra = OmegaConf.select(_root_, "hydra") or HydraConfig.get()  # a job's own configuration has no hydra node
    subdir = str(OmegaConf.to_container(hydra.sweep, resolve=False)["subdir"])  # type: ignore[index,call-overload]
    given = re.fullmatch(r"\$\{cell_name:(.*)\}", subdir)
    varied = varied_keys(OmegaConf.create({"hydra": hydra}), given[1].split(",") if given else ())
    name = cell_folder([*_run_overrides(_root_), f"{axis}={value}"], varied)
    return f"{hydra.sweep.dir}/{name}"


def each(values: Sequence[Any]) -> str:
    """Resolve `${each:LIST}`: the values of a list as those of a sweep's axis."""
    return ",".join("null" if value is None else str(value) for value in values)


def last(values: Sequence[Any]) -> Any:
    """Resolve `${last:LIST}`: the last value of a list."""
    return values[-1]


def group_name(*, _root_: DictConfig) -> str:
    """Resolve `${group_name:}`: the sweep that a run belongs to, else its own name."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).name
    return run_name(_root_=_root_)


def option_of(group: str, *, _root_: DictConfig) -> str:
    """Resolve `${option_of:GROUP}`: the option that was chosen, `none` for none."""
    choices = OmegaConf.select(_root_, "hydra.runtime.choices")
    if choices is None and HydraConfig.initialized():  # a job's own configuration has no hydra node
        choices = HydraConfig.get().runtime.choices
    return str((choices or {}).get(group) or "none")


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


def of_base(part: str, *, _root_: DictConfig) -> Any:
    """Resolve `${of_base:PART}`: a setting of `size` as the model that `backbone=hf` names has it.

    Raises:
        ConfigurationError: No model is named, there is none of that name, or its kind cannot be RETROfitted.
    """
    from retro_lab.runs.base_model import BaseModel  # which loads transformers

    backbone = _root_.backbone
    if OmegaConf.is_missing(backbone, "model") or backbone.model is None:
        raise ConfigurationError("backbone.model has no value; give it one: backbone.model=...")
    return getattr(BaseModel.of(backbone.model, backbone.revision).size, part)


def equal_widths(*, _root_: DictConfig) -> bool:
    """Resolve `${equal_widths:}`: whether decoder and encoder are of one width, and can share their embeddings."""
    return bool(_root_.size.width == _root_.size.encoder_width)


RESOLVERS = (
    run_name, run_dir, cell_name, group_name, option_of, tokens_of_steps, layers_from, middle_layer, equal_widths,
    of_base, sibling_cell, each, last,
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
