"""FSDP2 in Lightning: `trainer=fsdp`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from retro_lab.errors import ArtifactError
from retro_lab.model.sharding import fill, load_weights
from retro_lab.training.checkpoints import (
    aside,
    checked_state,
    clear,
    explained,
    put_in_place,
    read_checkpoint,
    read_or_fall_back,
    removed_after,
)
from retro_lab.training.sharded_checkpoints import check_shards, read_shards, together, write_shards


class ShardedStrategy(ModelParallelStrategy):
    """Divides weights, gradients and moments over all devices of all nodes; `configure_model` calls `shard`.

    A checkpoint is a folder with a part from each rank (`retro_lab.training.sharded_checkpoints`). Any number of ranks
    can read it, as can every other strategy; and this one reads the single files of the others.
    """

    def setup_environment(self) -> None:
        """Make a mesh of all devices in a row."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the model's weights, each rank its part."""
        assert self.model is not None
        return self.model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer, each rank its part, with parameters numbered as in a single process."""
        return getattr(optimizer, "optimizer", optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint aside and put it in place; `last.ckpt` keeps its predecessor as `previous.ckpt`.

        Raises:
            ArtifactError: A rank could not write; the old checkpoint is untouched.
        """
        path = Path(self.broadcast(filepath))
        temporary = aside(path)
        with explained(path), removed_after(temporary) if self.is_global_zero else nullcontext():
            together(lambda: clear(temporary) if self.is_global_zero else None)
            write_shards(temporary, checkpoint)
            together(lambda: put_in_place(temporary, path) if self.is_global_zero else None)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights and optimizers from a checkpoint of any strategy, or from the previous one if it is damaged.

        Raises:
            ArtifactError: Neither can be read.
        """
        return read_or_fall_back(Path(self.broadcast(checkpoint_path)), self._restore)

    def _restore(self, path: Path) -> dict[str, Any]:
        assert self.model is not None
        weights = self.model.state_dict()

        def read() -> dict[str, Any]:
            if not path.is_dir():
                return checked_state(read_checkpoint(path), path)
            try:
                check_shards(path, self.global_rank, self.world_size)
            except ValueError as error:
                raise ArtifactError(f"{path} is not a whole checkpoint ({error}).") from error
            return {}

        state = together(read)
        if path.is_dir():
            state = checked_state(read_shards(path, lambda name: weights.get(name, self._parameter(name))), path)
        else:
            load_weights(self.model, state["state_dict"])
        for number, (optimizer, saved) in enumerate(zip(self.optimizers, state["optimizer_states"], strict=True)):
            for parameter, entries in saved["state"].items():
                target = self._parameter(f"{number}/{parameter}")
                assert target is not None
                saved["state"][parameter] = {key: _like(target, value) for key, value in entries.items()}
            optimizer.load_state_dict(saved)
        return state

    def _parameter(self, name: str) -> Tensor | None:
        """Return parameter I of optimizer N for the name `N/I`, None for other names."""
        number, _, index = name.partition("/")
        if not (number.isdecimal() and index.isdecimal()):
            return None
        groups = self.optimizers[int(number)].param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        return parameters[int(index)]


def _like(parameter: Tensor, value: Any) -> Any:
    """Divide a whole tensor as `parameter` is divided; return anything else as it is."""
    if not isinstance(value, Tensor) or isinstance(value, DTensor) or value.shape != parameter.shape:
        return value
    part = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    fill(part, value)
    return part
