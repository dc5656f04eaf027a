"""The relative positions of Transformer-XL (Dai et al. 2019, section 3.3), which RETRO uses in every attention.

The logit of query token i and key token j is, before the scale 1/sqrt(A),

    (q_i + u) . k_j   +   (q_i + v) . R s(d(i, j))

with learned u, v (one vector per head), a learned projection R and sinusoids s of the distance d:

    decoder self-attention       d = i - j          j <= i (causal)
    encoder self-attention       d = i - j          both directions
    chunked cross-attention      d = i - i' + M - 1  (Borgeaud et al. 2022, appendix B.1.2)
    encoder cross-attention      d = i' - i          (query: neighbor token i', key: chunk token i)

R reads sinusoids as wide as the queries' stream, so it has width x (heads x head size) entries. Only this size of R
gives the eight parameter counts of Table 2.

Shapes: Q query tokens, J key tokens, T distances, D width, H heads, A head size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


def sinusoids(distances: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Embed distances as sines and cosines of wavelengths from 2 pi to 10,000 x 2 pi (Vaswani et al. 2017).

    Args:
        distances: integers [T], which may be negative.
        width: D, even.
        dtype: type of the result.

    Returns:
        [T, D], the sines in the first half and the cosines in the second, as in the code of Dai et al.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32  # bfloat16 holds integers only up to 256
    exponents = torch.arange(0, width, 2, device=distances.device, dtype=exact) / width
    angles = distances.to(exact)[:, None] * 10_000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


def descending_distances(queries: int, keys: int, offset: int, device: torch.device) -> Tensor:
    """All distances `query - key + offset` of 0-indexed queries and keys, largest first, and one filler.

    Returns:
        [T] with T = Q + J, from Q - 1 + offset down to offset - J. No pair has the last one, the filler; it makes the
        rows long enough for `align_distances`.
    """
    return torch.arange(queries - 1 + offset, offset - keys - 1, -1, device=device)


def align_distances(logits: Tensor, keys: int) -> Tensor:
    """Turn columns for distances into columns for keys (the "relative shift" of Dai et al.).

    Row a of `logits` holds the logits of query a for the descending distances; key j of query a is in column
    Q - 1 - a + j. Each row thus starts one column further left than the row above it. Flattened and read from entry
    Q - 1 on, this is a matrix whose rows are one entry shorter:

        a=0   . . 0 1 2 .          0 1 2 . .
        a=1   . 0 1 2 . .    ->    0 1 2 . .      Q = 3, J = 3, T = 6; "." is not needed
        a=2   0 1 2 . . .          0 1 2 . .

    Args:
        logits: [..., Q, T], contiguous, with T >= J + 1.
        keys: J.

    Returns:
        [..., Q, J], a view. Entries whose distance is beyond the last column are arbitrary.
    """
    queries, distances = logits.shape[-2:]
    flat = logits.view(*logits.shape[:-2], queries * distances)[..., queries - 1 : queries * distances - 1]
    return flat.view(*logits.shape[:-2], queries, distances - 1)[..., :keys]


class Projected(NamedTuple):
    """Sinusoids of distances that R has already projected."""

    position: Tensor  # [H, A, T], or [H, G, A, T] if the distances of G groups differ


class RelativePositions(nn.Module):
    """The parameters R, u and v of one attention."""

    def __init__(self, width: int, heads: int, head_size: int) -> None:
        """Create the parameters; `RetroModel.reset_parameters` fills them.

        Args:
            width: D, the width of the queries' stream and of the sinusoids.
            heads: H.
            head_size: A.
        """
        super().__init__()
        self.projection = nn.Linear(width, heads * head_size, bias=False)  # R
        self.content_bias = nn.Parameter(torch.empty(heads, head_size))  # u
        self.position_bias = nn.Parameter(torch.empty(heads, head_size))  # v

    def projected(self, encodings: Tensor) -> Tensor:
        """Return R s(d), one vector for each head and distance of the sinusoids [T, D], as a right factor [H, A, T]."""
        vectors: Tensor = self.projection(encodings)
        return vectors.unflatten(-1, self.content_bias.shape).permute(1, 2, 0)

    def forward(self, encodings: Tensor | Projected, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return u and v as `dtype`, and the projected sinusoids [T, D], laid out as a right factor.

        Returns:
            u [H, A], v [H, A], and R s(d), one vector for each head and distance, [H, A, T] (or as `Projected`).
        """
        position = encodings.position if isinstance(encodings, Projected) else self.projected(encodings)
        return self.content_bias.to(dtype), self.position_bias.to(dtype), position
