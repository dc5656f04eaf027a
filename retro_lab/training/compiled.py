"""torch.compile for the training loss, with a one-sentence error where a machine cannot compile.

The forward pass and the loss form one graph, and so does their backward pass. Two operations are called rather than
compiled, because each is a loop over matrix products: attention with Transformer-XL positions, and the cross-entropy.
Everything else is compiled: norms, projections, residuals, non-linearities, embeddings, rotations. Rotary attention
calls torch's fused kernel. This holds on CPUs (Inductor writes C++) and on GPUs (it writes Triton).
"""

import functools
import os
import shutil
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from retro_lab.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")

ADVICE = "install g++ (and Python's headers), or set compute.compile=false"


def check_compiler() -> None:
    """Refuse to compile on a machine without a compiler, before a corpus is built.

    Raises:
        ConfigurationError: There is no C++ compiler. With a GPU any C compiler will do.
    """
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if torch.cuda.is_available():
        names += [os.environ.get("CC", ""), "gcc", "clang", "cc"]
    if not any(shutil.which(name) for name in names if name):
        raise ConfigurationError(f"compute.compile=true needs a C++ compiler, and none was found; {ADVICE}.")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function of tensors with fixed shapes, as one graph, at its first call.

    A module's method remains a method of that module: its parameters and their names do not change.

    Raises:
        ConfigurationError: At the first call, if the machine cannot compile it.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # takes a second to import, so only when compiling

    # Drop the graphs of earlier models in this process (a sweep may train many). They are of no further use, and torch
    # counts them by code rather than by model and stops compiling after eight.
    torch.compiler.reset()
    graph = torch.compile(function, fullgraph=True, dynamic=False)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return graph(*args, **kwargs)
        except BackendCompilerFailed as error:
            reason = str(error).partition("\n")[0]
            raise ConfigurationError(f"compute.compile=true cannot compile the model ({reason}); {ADVICE}.") from error

    return call
