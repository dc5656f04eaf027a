"""torch.compile for the loss that is trained on, and errors of one sentence where a machine cannot compile.

The whole of forward pass and loss is one graph, and so is its backward pass. Two operations in it are not compiled but
called, each a loop over matrix products: attention with Transformer-XL positions and the cross-entropy. Everything
else is: norms, projections, residuals, non-linearities, embeddings, rotations; rotary attention calls torch's fused
kernel. This holds on processors (Inductor writes C++) and on GPUs (it writes Triton).
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
    """Refuse to compile where there is nothing to compile with, before a corpus is built for it.

    Raises:
        ConfigurationError: No C++ compiler is found. On GPUs any C compiler will do.
    """
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if torch.cuda.is_available():
        names += [os.environ.get("CC", ""), "gcc", "clang", "cc"]
    if not any(shutil.which(name) for name in names if name):
        raise ConfigurationError(f"compute.compile=true finds no C++ compiler; {ADVICE}.")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function of tensors whose shapes stay the same, as one graph, at its first call.

    A method of a module stays one: parameters and their names are those of the module.

    Raises:
        ConfigurationError: At the first call, if the machine cannot compile it.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # a second of imports, for those who compile

    # What was compiled for models of this process before (a sweep may train many) is of no use, and torch, which counts
    # it by code and not by model, stops at eight.
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
