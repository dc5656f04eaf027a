"""What a configuration of Lightning's Trainer says about devices, before there is a Trainer."""

from collections.abc import Mapping
from typing import Any

import torch

from retro_lab.errors import ConfigurationError
from retro_lab.training.precision import on_processor


def is_sharding(trainer: Mapping[str, Any]) -> bool:
    """Return whether a trainer's strategy is that of `trainer=fsdp`."""
    strategy = trainer.get("strategy")
    return isinstance(strategy, Mapping) and str(strategy.get("_target_", "")).endswith(".ShardedStrategy")


def device_count(trainer: Mapping[str, Any]) -> int | None:
    """Return the number of devices of all nodes; None if each machine uses all that it has.

    Raises:
        ConfigurationError: `trainer.num_nodes` or `trainer.devices` is invalid.
    """
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
        raise ConfigurationError(f"trainer.num_nodes must be a positive whole number, not {nodes}.")
    if isinstance(devices, list) and devices:
        return len(devices) * nodes
    if str(devices) in ("auto", "-1"):
        return None
    if isinstance(devices, str) and all(part.strip().isdecimal() for part in devices.split(",") if part):
        numbers = [part for part in devices.split(",") if part]
        if "," in devices and numbers:
            return len(numbers) * nodes
        devices = int(devices or 0)
    if devices in (0, []):
        raise ConfigurationError(
            f"trainer.devices={devices} leaves nothing to train on; give a number, or -1 for all devices."
        )
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 0:
        raise ConfigurationError(
            f"trainer.devices={devices} is not a number of devices; give a number, a list, or -1 for all devices."
        )
    return devices * nodes


def devices_used(trainer: Mapping[str, Any]) -> int:
    """Return the number of devices of all nodes, where `devices: auto` is all devices of machines like this one."""
    if (count := device_count(trainer)) is not None:
        return count
    accelerator = str(trainer.get("accelerator", "auto"))
    count = 1 if on_processor(accelerator) else max(1, torch.cuda.device_count())
    return count * int(trainer.get("num_nodes", 1))
