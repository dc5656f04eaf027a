"""Divides a model over devices with FSDP2: each holds a part of every weight, its gradient and its moments.

The units that are gathered for a computation and freed after it are the residual blocks of decoder and encoder, and
the layers of a base that was RETROfitted.
Everything else (embeddings, the norms between blocks, the read-out) is one more unit, which is kept gathered from the
forward to the backward pass, because the loss reads the embeddings after the forward pass.
"""

from collections.abc import Container, Iterator, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class Divisible(Protocol):
    """A module that names the blocks that are gathered one after the other."""

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the blocks."""


def shard(model: nn.Module, mesh: DeviceMesh, block_dtype: torch.dtype | None = None) -> None:
    """Divide the parameters of `model`, which may be on the meta device, over a mesh of one dimension.

    Args:
        model: The model; a `LanguageModel`, which says what its blocks are.
        mesh: The devices.
        block_dtype: Type in which the weights of blocks are gathered, where autocast would cast them anyway; None for
            that of the weights. The residual stream, the embeddings and the sums of gradients stay in float32.
    """
    exact = None if next(model.parameters()).dtype == torch.float64 else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=block_dtype, reduce_dtype=exact, cast_forward_inputs=False)
    for block in list(cast("Divisible", model).blocks()):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=exact, cast_forward_inputs=False))


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard` has divided a model."""
    return isinstance(model, FSDPModule)


def free_gathered(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass has left gathered; do nothing if the model is not sharded."""
    if isinstance(model, FSDPModule):
        model.reshard()


@torch.no_grad()
def fill(target: Tensor, values: Tensor) -> None:
    """Copy a whole tensor, equal on all devices, into a tensor; a sharded one takes its own part."""
    if isinstance(target, DTensor):
        values = distribute_tensor(values, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(values)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill the parameters and buffers that `weights` names, sharded or not, with whole tensors."""
    for name, value in model.state_dict().items():
        if name in weights:
            fill(value, weights[name])


def whole_weights(model: nn.Module, names: Container[str] | None = None) -> dict[str, Tensor]:
    """Return whole parameters and buffers in the memory of the processor.

    All processes of a sharded model must call this together; one tensor at a time is gathered.

    Args:
        model: The model.
        names: Which to return; None for all.

    Returns:
        The weights by name; empty on all processes of a sharded model but the first, which alone needs the memory.
    """
    weights = {}
    for name, value in model.state_dict().items():
        if names is not None and name not in names:
            continue
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if not isinstance(value, DTensor) or torch.distributed.get_rank() == 0:
            weights[name] = whole.detach().cpu().contiguous()
    return weights
