"""Operations that keep less for the backward pass than torch's would, and recompute the rest.

Inductor sees the whole graph and finds the same savings by itself, so compiled code uses torch's own operations.

Shapes: D width, F inner width of the feed-forward network.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROWS = 4096
"""Rows of activations that are recomputed at a time."""


class RMSNorm(nn.RMSNorm):
    """x w / sqrt(mean(x^2) + eps), which keeps x and one number for each row.

    On CPUs, torch composes it of six operations and keeps two tensors; on GPUs, torch has a kernel like this one.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        if hidden.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(hidden)
        if not torch.is_grad_enabled():
            return _normalized(hidden, self.weight, cast("float", self.eps))[0]
        return cast("Tensor", _RMSNorm.apply(hidden, self.weight, self.eps))


def _normalized(hidden: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the normalized rows, and 1 / sqrt(mean(x^2) + eps)."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=exact)
    scale = length.square_().div_(hidden.shape[-1]).add_(eps).rsqrt_()
    return (hidden * scale).mul_(weight).to(hidden.dtype), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        normalized, scale = _normalized(hidden, weight, eps)
        ctx.save_for_backward(hidden, weight, scale)
        return normalized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, scale = ctx.saved_tensors
        normalized = hidden * scale
        weight_gradient = (grad_output * normalized).flatten(0, -2).sum(dim=0)
        grad_output = grad_output.to(normalized.dtype) * weight
        along = torch.linalg.vecdot(grad_output, normalized).unsqueeze(-1) / hidden.shape[-1]
        gradient = grad_output.sub_(normalized.mul_(along)).mul_(scale)
        return gradient.to(hidden.dtype), weight_gradient.to(weight.dtype), None


def project_activated(inner: Tensor, weight: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `activation(inner)` @ `weight`.T for `inner` [..., F] and `weight` [D, F]; it keeps only `inner`."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.linear(activation(inner), weight)
    return cast("Tensor", _ProjectActivated.apply(inner, weight, activation))


class _ProjectActivated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inner: Tensor, weight: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        cast_weight = weight.to(inner.dtype)  # under autocast `inner` is in half precision
        ctx.save_for_backward(inner, cast_weight)
        ctx.activation, ctx.weight_dtype = activation, weight.dtype
        return F.linear(activation(inner), cast_weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor | None, None]:
        inner, weight = ctx.saved_tensors
        rows, grad_rows = inner.flatten(0, -2), grad_output.flatten(0, -2)
        gradient = torch.empty_like(rows)
        weight_gradient = torch.zeros_like(weight, dtype=ctx.weight_dtype) if ctx.needs_input_grad[1] else None
        # In slices: temporaries of [rows, F] would set the peak memory of the whole training step.
        for part, grad_part, gradient_part in zip(*(t.split(ROWS) for t in (rows, grad_rows, gradient)), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                activated = ctx.activation(part)
            gradient_part.copy_(torch.autograd.grad(activated, part, grad_part @ weight)[0])
            if weight_gradient is not None:
                weight_gradient += grad_part.t() @ activated.detach()
        return gradient.view_as(inner), weight_gradient, None
