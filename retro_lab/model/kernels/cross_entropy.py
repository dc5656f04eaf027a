"""Cross-entropy over a large vocabulary without holding the logits of all tokens in memory.

128,000 logits for each of 8 x 2,048 tokens take 8.4 GB in float32, and their gradient as much again. Here a few tokens
at a time get their logits, their loss *and* their gradients, and the logits are then discarded.

Shapes: T tokens, D width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 4096
"""Rows of the read-out's gradient that a half-precision product is added to at a time."""


class Readout(NamedTuple):
    """How logits come from hidden states: our models only have a weight; those of others may do more."""

    weight: Tensor
    """[V, D]."""
    bias: Tensor | None = None
    """[V], added to the product."""
    divisor: float = 1.0
    """What the sum is divided by."""
    cap: float | None = None
    """c of c tanh(x / c), which keeps the logits between -c and c."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Read out hidden states [..., D] as logits [..., V]."""
        return self.bounded(F.linear(hidden, self.weight, self.bias))

    def bounded(self, logits: Tensor) -> Tensor:
        """Divide and cap what the product with the weight, and the bias, have given."""
        if self.divisor != 1:
            logits = logits / self.divisor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def to(self, dtype: torch.dtype) -> "Readout":
        """Return it with a weight and bias of another type."""
        return self._replace(weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))


def slice_limit(device: torch.device) -> int:
    """Logits in memory at a time: 64 MiB of float32 on a CPU; enough to keep an accelerator busy elsewhere."""
    return 2**24 if device.type == "cpu" else 2**27


def softmax_limit(device: torch.device) -> int:
    """Logits turned into probabilities at a time: as many as a CPU's cache holds; a whole slice on an accelerator."""
    return 2**20 if device.type == "cpu" else slice_limit(device)


def token_slices(hidden: Tensor, readout: Tensor | Readout) -> Iterator[slice]:
    """Cut the tokens of `hidden` [T, D] so that one slice has no more logits than `slice_limit`."""
    step = max(1, slice_limit(hidden.device) // _whole(readout).weight.shape[0])
    return (slice(start, start + step) for start in range(0, hidden.shape[0], step))


def token_cross_entropy(hidden: Tensor, readout: Tensor | Readout, targets: Tensor) -> Tensor:
    """Cross-entropy of each token.

    It is differentiable, but then keeps all logits; to train, use `summed_cross_entropy`.

    Args:
        hidden: [T, D].
        readout: read-out, or only its weight [V, D].
        targets: int64 [T].

    Returns:
        [T] nats, float32 or better.
    """
    readout = _whole(readout)
    losses = [
        F.cross_entropy(_at_least_float32(readout.logits(hidden[tokens])), targets[tokens], reduction="none")
        for tokens in token_slices(hidden, readout)
    ]
    return torch.cat(losses)


def most_probable(hidden: Tensor, readout: Tensor | Readout) -> Tensor:
    """Return the token with the largest logit after each token, int64 [T]; of equal ones the first.

    Args:
        hidden: [T, D].
        readout: read-out, or only its weight [V, D].
    """
    readout = _whole(readout)
    found = [readout.logits(hidden[tokens]).argmax(-1) for tokens in token_slices(hidden, readout)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=hidden.device)


def summed_cross_entropy(hidden: Tensor, readout: Tensor | Readout, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy summed over the tokens that count.

    Args:
        hidden: [T, D].
        readout: read-out, or only its weight [V, D].
        targets: int64 [T]; anything where the mask is False.
        mask: bool [T], True where a token counts.

    Returns:
        Scalar, nats, float32 or better.
    """
    targets = targets.masked_fill(~mask, 0)
    if torch.is_grad_enabled():
        loss: Tensor = _SummedCrossEntropy.apply(hidden, targets, mask, *_whole(readout))
        return loss
    return (token_cross_entropy(hidden, readout, targets) * mask).sum()


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum and its gradients in one pass; backward only multiplies them by the incoming gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        mask: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        divisor: float,
        cap: float | None,
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        run = _loss_and_gradients_in_graph if torch.compiler.is_compiling() else _loss_and_gradients
        trained = ctx.trained = ctx.needs_input_grad[3:5]
        total, *gradients = run(hidden, targets, mask, weight, bias, divisor, cap, dtype, *trained)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, Tensor | None, Tensor | None, None, None]:
        # In place where possible, because the gradient of a large read-out is the largest tensor of a step. Autograd
        # then refuses a second backward pass through the same graph.
        scale = torch.Tensor.mul if torch.compiler.is_compiling() else torch.Tensor.mul_
        hidden, *others = ctx.saved_tensors
        weight, bias = (
            scale(gradient, grad_output) if trained else None
            for gradient, trained in zip(others, ctx.trained, strict=True)
        )
        return hidden * grad_output, None, None, weight, bias, None, None


def _loss_and_gradients(
    hidden: Tensor,
    targets: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    divisor: float,
    cap: float | None,
    dtype: torch.dtype,
    weight_is_trained: bool,
    bias_is_trained: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sum and the gradients of `hidden`, `weight` and `bias` (empty if not trained).

    Products are in `dtype`.
    """
    exact = torch.promote_types(dtype, torch.float32)
    readout = Readout(weight, bias, divisor, cap)
    total, cast_readout = torch.zeros((), dtype=exact, device=hidden.device), readout.to(dtype)
    hidden_gradient = torch.empty_like(hidden)
    weight_gradient = torch.zeros_like(weight) if weight_is_trained else weight.new_empty(0)
    bias_gradient = torch.zeros_like(bias) if bias_is_trained and bias is not None else weight.new_empty(0)
    slices = list(token_slices(hidden, readout))
    # All slices share one buffer: the system would map and clear memory of this size anew at each request.
    all_logits = torch.empty(slices[0].stop, weight.shape[0], dtype=dtype, device=hidden.device)
    for tokens in slices:
        states, counts = hidden[tokens].to(dtype), mask[tokens, None]
        logits = torch.mm(states, cast_readout.weight.t(), out=all_logits[: len(states)])
        if cast_readout.bias is not None:
            logits += cast_readout.bias
        logits = cast_readout.bounded(logits)
        slope = None if cap is None else 1 - (logits / cap).square_()  # of the cap
        log_probabilities = _to_gradient(logits, targets[tokens, None], exact)
        total -= (log_probabilities * counts).sum()
        if slope is not None:
            logits *= slope
        if divisor != 1:
            logits /= divisor
        hidden_gradient[tokens] = (logits @ cast_readout.weight) * counts
        if weight_is_trained:
            _add_product(weight_gradient, logits.t(), states * counts)
        if bias_is_trained:
            bias_gradient += (logits * counts).sum(0, dtype=exact)
    return total, hidden_gradient, weight_gradient, bias_gradient


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
    schema="(Tensor hidden, Tensor targets, Tensor mask, Tensor weight, Tensor? bias, float divisor, float? cap, "
    "ScalarType dtype, bool weight_is_trained, bool bias_is_trained) -> (Tensor, Tensor, Tensor, Tensor)",
)


@_loss_and_gradients_in_graph.register_fake
def _fake_loss_and_gradients(
    hidden: Tensor,
    targets: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    divisor: float,
    cap: float | None,
    dtype: torch.dtype,
    weight_is_trained: bool,
    bias_is_trained: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = hidden.new_empty((), dtype=torch.promote_types(dtype, torch.float32))
    return (
        total,
        torch.empty_like(hidden),
        torch.empty_like(weight) if weight_is_trained else weight.new_empty(0),
        torch.empty_like(bias) if bias_is_trained and bias is not None else weight.new_empty(0),
    )


def _whole(readout: Tensor | Readout) -> Readout:
    return Readout(readout) if isinstance(readout, Tensor) else readout


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
