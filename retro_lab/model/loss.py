"""Cross-entropy over a large vocabulary without the logits of all tokens in memory.

128,000 logits for each of 8 x 2,048 tokens are 8.4 GB in float32, and their gradient as much again. Here a few tokens
at a time form their logits, their loss *and* their gradients, and the logits are forgotten.

Shapes: T tokens, D width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def slice_limit(device: torch.device) -> int:
    """Logits in memory at a time: 64 MiB of float32 on a processor; enough to keep an accelerator busy elsewhere."""
    return 2**24 if device.type == "cpu" else 2**27


def token_slices(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Cut the tokens of `hidden` [T, D] so that one slice has no more logits than `slice_limit`."""
    step = max(1, slice_limit(hidden.device) // weight.shape[0])
    return (slice(start, start + step) for start in range(0, hidden.shape[0], step))


def token_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token.

    Differentiable, but then it keeps all logits: to train, use `summed_cross_entropy`.

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


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Sum of the cross-entropy over the tokens that count.

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
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * outer, weight_gradient * outer if ctx.weight_is_trained else None, None, None


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, dtype: torch.dtype, weight_is_trained: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum and the gradients of `hidden` and, empty if it is not trained, `weight`; products are `dtype`."""
    exact = torch.promote_types(dtype, torch.float32)
    total, cast_weight = torch.zeros((), dtype=exact, device=hidden.device), weight.to(dtype)
    hidden_gradient = torch.empty_like(hidden)
    weight_gradient = torch.zeros_like(weight) if weight_is_trained else weight.new_empty(0)
    product = None if weight.dtype == dtype else torch.empty_like(cast_weight)
    for tokens in token_slices(hidden, weight):
        states, correct, counts = hidden[tokens].to(dtype), targets[tokens, None], mask[tokens, None]
        log_probabilities = F.log_softmax(states @ cast_weight.t(), dim=-1, dtype=exact)
        total -= (log_probabilities.gather(1, correct) * counts).sum()
        # d loss / d logits = softmax - one-hot, in the memory of the log-probabilities.
        gradient = log_probabilities.exp_()
        gradient.scatter_add_(1, correct, gradient.new_full(correct.shape, -1.0))
        gradient = gradient.mul_(counts).to(dtype)
        hidden_gradient[tokens] = gradient @ cast_weight
        if not weight_is_trained:
            continue
        if product is None:
            weight_gradient.addmm_(gradient.t(), states)
        else:  # half precision is added up in the precision of the weight
            weight_gradient += torch.mm(gradient.t(), states, out=product)
    return total, hidden_gradient, weight_gradient


# In a compiled graph it is one operation: unrolled into it, the slices would only make it larger.
_loss_and_gradients_in_graph = torch.library.custom_op(
    "retro_lab::summed_cross_entropy",
    _loss_and_gradients,
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor targets, Tensor mask, ScalarType dtype, bool weight_is_trained) "
    "-> (Tensor, Tensor, Tensor)",
)


@_loss_and_gradients_in_graph.register_fake
def _loss_and_gradients_like(
    hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, dtype: torch.dtype, weight_is_trained: bool
) -> tuple[Tensor, Tensor, Tensor]:
    total = hidden.new_empty((), dtype=torch.promote_types(dtype, torch.float32))
    return total, torch.empty_like(hidden), torch.empty_like(weight) if weight_is_trained else weight.new_empty(0)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
