"""Cross-entropy over a large vocabulary without holding the logits of all tokens in memory.

128,000 logits for each of 8 x 2,048 tokens take 8.4 GB in float32, and their gradient as much again. Here a few tokens
at a time get their logits, their loss *and* their gradients, and the logits are then discarded.

Shapes: T tokens, D width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 4096
"""Rows of the read-out's gradient that a half-precision product is added to at a time."""


def slice_limit(device: torch.device) -> int:
    """Logits in memory at a time: 64 MiB of float32 on a CPU; enough to keep an accelerator busy elsewhere."""
    return 2**24 if device.type == "cpu" else 2**27


def softmax_limit(device: torch.device) -> int:
    """Logits turned into probabilities at a time: as many as a CPU's cache holds; a whole slice on an accelerator."""
    return 2**20 if device.type == "cpu" else slice_limit(device)


def token_slices(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Cut the tokens of `hidden` [T, D] so that one slice has no more logits than `slice_limit`."""
    step = max(1, slice_limit(hidden.device) // weight.shape[0])
    return (slice(start, start + step) for start in range(0, hidden.shape[0], step))


def token_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token.

    It is differentiable, but then keeps all logits; to train, use `summed_cross_entropy`.

    Args:
        hidden: [T, D].
        weight: read-out [V, D].
        targets: int64 [T].

    Returns:
        [T] nats, float32 or better.
    """
    losses = [
        F.cross_entropy(_at_least_float32(F.linear(hidden[tokens], weight)), targets[tokens], reduction="none")
        for tokens in token_slices(hidden, weight)
    ]
    return torch.cat(losses)


def most_probable(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return the token with the largest logit after each token, int64 [T]; of equal ones the first.

    Args:
        hidden: [T, D].
        weight: read-out [V, D].
    """
    found = [F.linear(hidden[tokens], weight).argmax(-1) for tokens in token_slices(hidden, weight)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=hidden.device)


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy summed over the tokens that count.

    Args:
        hidden: [T, D].
        weight: read-out [V, D].
        targets: int64 [T]; anything where the mask is False.
        mask: bool [T], True where a token counts.

    Returns:
        Scalar, nats, float32 or better.
    """
    targets = targets.masked_fill(~mask, 0)
    if torch.is_grad_enabled():
        loss: Tensor = _SummedCrossEntropy.apply(hidden, weight, targets, mask)
        return loss
    return (token_cross_entropy(hidden, weight, targets) * mask).sum()


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum and its gradients in one pass; backward only multiplies them by the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        run = _loss_and_gradients_in_graph if torch.compiler.is_compiling() else _loss_and_gradients
        total, *gradients = run(hidden, weight, targets, mask, dtype, ctx.needs_input_grad[1])
        ctx.save_for_backward(*gradients)
        ctx.weight_is_trained = ctx.needs_input_grad[1]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        # In place where possible, because the gradient of a large read-out is the largest tensor of a step. Autograd
        # then refuses a second backward pass through the same graph.
        scale = torch.Tensor.mul if torch.compiler.is_compiling() else torch.Tensor.mul_
        hidden_gradient, weight_gradient = ctx.saved_tensors
        weight_gradient = scale(weight_gradient, grad_output) if ctx.weight_is_trained else None
        return hidden_gradient * grad_output, weight_gradient, None, None


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, dtype: torch.dtype, weight_is_trained: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum and the gradients of `hidden` and `weight` (empty if not trained); products are in `dtype`."""
    exact = torch.promote_types(dtype, torch.float32)
    total, cast_weight = torch.zeros((), dtype=exact, device=hidden.device), weight.to(dtype)
    hidden_gradient = torch.empty_like(hidden)
    weight_gradient = torch.zeros_like(weight) if weight_is_trained else weight.new_empty(0)
    slices = list(token_slices(hidden, weight))
    # All slices share one buffer: the system would map and clear memory of this size anew at each request.
    all_logits = torch.empty(slices[0].stop, weight.shape[0], dtype=dtype, device=hidden.device)
    for tokens in slices:
        states, counts = hidden[tokens].to(dtype), mask[tokens, None]
        logits = torch.mm(states, cast_weight.t(), out=all_logits[: len(states)])
        log_probabilities = _to_gradient(logits, targets[tokens, None], exact)
        total -= (log_probabilities * counts).sum()
        hidden_gradient[tokens] = (logits @ cast_weight) * counts
        if weight_is_trained:
            _add_product(weight_gradient, logits.t(), states * counts)
    return total, hidden_gradient, weight_gradient


def _to_gradient(logits: Tensor, targets: Tensor, exact: torch.dtype) -> Tensor:
    """Turn logits [T, V] into d loss / d logits, softmax - one-hot, in place.

    Returns:
        Log-probabilities of the targets [T, 1], `exact`.
    """
    rows = max(1, softmax_limit(logits.device) // logits.shape[1])
    chosen = []
    for part, target in zip(logits.split(rows), targets.split(rows), strict=True):
        probabilities = torch.softmax(part, dim=-1, dtype=exact)
        # log p = logit - (largest logit - log of its probability), which is at least 1/V: no logarithm of 0.
        normalizer = part.amax(dim=-1, keepdim=True).to(exact) - probabilities.amax(dim=-1, keepdim=True).log()
        chosen.append(part.gather(1, target).to(exact) - normalizer)
        part.copy_(probabilities)
        part[torch.arange(len(part), device=part.device), target[:, 0]] = chosen[-1][:, 0].expm1().to(part.dtype)
    return torch.cat(chosen)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left` @ `right` to `total` [V, D], which may be more precise than the factors."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
        return
    for start in range(0, len(total), BLOCK):  # a block of the product stays in the cache until it is added
        total[start : start + BLOCK] += left[start : start + BLOCK] @ right


# A compiled graph calls it as one operation: unrolling the slices would only make the graph larger.
_loss_and_gradients_in_graph = torch.library.custom_op(
    "retro_lab::summed_cross_entropy",
    _loss_and_gradients,
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor targets, Tensor mask, ScalarType dtype, bool weight_is_trained) "
    "-> (Tensor, Tensor, Tensor)",
)


@_loss_and_gradients_in_graph.register_fake
def _fake_loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, dtype: torch.dtype, weight_is_trained: bool
) -> tuple[Tensor, Tensor, Tensor]:
    total = hidden.new_empty((), dtype=torch.promote_types(dtype, torch.float32))
    return total, torch.empty_like(hidden), torch.empty_like(weight) if weight_is_trained else weight.new_empty(0)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
