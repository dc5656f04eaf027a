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
from retro_lab.model.blocks import Branch
from retro_lab.model.language_model import LanguageModel

P = ParamSpec("P")
R = TypeVar("R")

ADVICE = "install g++ (and Python's headers), or set compute.compile=false"
KINDS_OF_BLOCKS = 64
"""Upper bound on the versions of a block's graph."""


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
    # Drop the graphs of earlier models in this process (a sweep may train many). They are of no further use, and torch
    # counts them by code rather than by model and stops compiling after eight.
    torch.compiler.reset()
    return _compiled(function)


def compile_blocks(model: LanguageModel) -> None:
    """Compile each residual block of a model by itself, for training alone.

    Between blocks FSDP gathers and frees weights, which no graph can hold. Blocks of one kind share a graph.

    Raises:
        ConfigurationError: At the first step, if the machine cannot compile them.
    """
    torch.compiler.reset()
    # Kinds of blocks, with and without gradients of their input, are counted as versions of one function.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS_OF_BLOCKS)
    for block in model.modules():
        if isinstance(block, Branch):
            block.compute = _in_training(block.compute)  # type: ignore[method-assign]


def _in_training(function: Callable[P, R]) -> Callable[P, R]:
    fused = _compiled(function)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (fused if torch.is_grad_enabled() else function)(*args, **kwargs)

    return call


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    from torch._dynamo.exc import BackendCompilerFailed  # takes a second to import, so only when compiling

    graph = torch.compile(function, fullgraph=True, dynamic=False)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return graph(*args, **kwargs)
        except BackendCompilerFailed as error:
            reason = str(error).partition("\n")[0]
            raise ConfigurationError(f"compute.compile=true cannot compile the model ({reason}); {ADVICE}.") from error

    return call
