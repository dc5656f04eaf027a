"""Initial weights.

The paper does not state an initialization. Here weights are normal with standard deviation `init_std`, divided by
sqrt(2 x layers) at the end of a residual block (as in GPT-2).
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from retro_lab.model.sharding import fill


@torch.no_grad()
def draw(parameters: Iterable[tuple[str, nn.Parameter]], init_std: float, layers: Mapping[str, int]) -> None:
    """Draw weights anew, one after the other.

    Each device draws all numbers of a sharded one, and keeps its part: the weights are those that a single process
    draws.

    Args:
        parameters: By name, in the order in which they are drawn.
        init_std: Standard deviation.
        layers: Of `decoder` and `encoder`.
    """
    for name, parameter in parameters:
        sharded = isinstance(parameter, DTensor)
        values = torch.empty(parameter.shape, dtype=parameter.dtype) if sharded else parameter
        if name.endswith("norm.weight"):
            nn.init.ones_(values)
        elif name.endswith("output.weight"):
            stack = layers["encoder" if name.startswith("encoder.") else "decoder"]
            nn.init.normal_(values, std=init_std / math.sqrt(2 * stack))
        else:
            nn.init.normal_(values, std=init_std)
        if sharded:
            fill(parameter, values)


def is_cca_output(name: str) -> bool:
    """Return whether a parameter is the last product of chunked cross-attention.

    RETROfit starts with it at zero: neighbors change nothing until it is trained, so training starts from the loss of
    the base. Its own gradient is not zero, so that from the second step on all parameters are trained.
    """
    return ".cca." in f".{name}" and name.endswith("output.weight")
