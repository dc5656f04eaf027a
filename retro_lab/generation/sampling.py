"""From logits to the next token: greedy, or drawn at a temperature from the likeliest tokens.

The logits are divided by the temperature first, then cut to the `top_k` likeliest tokens, and then to the fewest of
these that together have at least `top_p` of the probability, in the order and by the code of `transformers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from retro_lab.errors import ConfigurationError
from retro_lab.ranges import NOT_NEGATIVE, POSITIVE, SEED, SHARE, check_ranges

if TYPE_CHECKING:
    from transformers import LogitsProcessorList


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """What logits are divided by; 0 takes the most likely token."""
    top_k: int | None = None
    """Draw from this many of the most likely tokens; None from all."""
    top_p: float | None = None
    """Draw from the fewest most likely tokens that together have at least this probability; None from all."""
    seed: int = 0
    """Of the draws; each text has draws of its own, whatever it is generated together with."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigurationError: A number is out of its range, or would change nothing.
        """
        check_ranges("", self, temperature=NOT_NEGATIVE, top_k=POSITIVE, top_p=SHARE, seed=SEED)
        for name in ("top_k", "top_p"):
            if getattr(self, name) is not None and not self.temperature:
                raise ConfigurationError(
                    f"{name}={getattr(self, name)} chooses among tokens that are drawn, and a temperature of 0 takes "
                    "the most likely one; set a temperature, such as 1."
                )

    def draws(self, number: int) -> np.random.Generator:
        """Return what draws for the text with this number."""
        return np.random.default_rng((self.seed, number))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities that tokens are drawn with, [B, V], from logits [B, V]; 1 for a greedy choice."""
        if not self.temperature:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        # Half precision would take apart what has equal probability, and add up to another sum.
        scores = logits if logits.dtype == torch.float64 else logits.float()
        return self._kept(None, scores / self.temperature).softmax(-1)

    def choose(self, logits: Tensor, draws: Sequence[np.random.Generator]) -> Tensor:
        """Choose a token for each row of logits [B, V], drawn by the row's own `draws`; int64 [B]."""
        if not self.temperature:
            return logits.argmax(-1)
        return drawn(self.probabilities(logits), draws)

    @cached_property
    def _kept(self) -> "LogitsProcessorList":
        """Sets the scores [B, V] of tokens that are not drawn from to minus infinity."""
        # Imported here, so that greedy decoding does not wait a second for it.
        from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

        found = [TopKLogitsWarper(self.top_k)] if self.top_k is not None else []
        return LogitsProcessorList([*found, *([TopPLogitsWarper(self.top_p)] if self.top_p is not None else [])])


def drawn(probabilities: Tensor, draws: Sequence[np.random.Generator]) -> Tensor:
    """Draw a token from each row of probabilities [B, V], which need not add up to 1, with its `draws`; int64 [B]."""
    sums = probabilities.double().cumsum(-1)
    numbers = torch.tensor([[one.random()] for one in draws], dtype=torch.float64, device=sums.device)
    tokens = torch.searchsorted(sums, numbers * sums[:, -1:], right=True)
    return torch.minimum(tokens, (sums < sums[:, -1:]).sum(-1, keepdim=True))[:, 0]  # where a product rounds up
