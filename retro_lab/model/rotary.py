"""Rotary positions (Su et al. 2021), `model.positions=rotary`: an option beyond the paper.

Pairs of entries of a query at position p are rotated by the angles p w, and those of a key at position p' by p' w, for
frequencies w from 1 to almost 1 / base. Their product then depends only on the distance p - p'. Positions are chosen so
that the distances are those of `positions.py`: in chunked cross-attention, attending token i has query position
i + M - 1, and token i' of any neighbor has key position i'.

There are no parameters, and logits are plain products, so torch's fused attention kernels apply. A decoder trained with
rotary positions can become a RETRO (RETROfit). Entry a is paired with entry a + A/2, as in GPT-NeoX and Llama.

Shapes: H heads, G groups (sequences or chunks), P query blocks of Q tokens each, S key blocks of J tokens each,
T positions, A head size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Rotations(NamedTuple):
    """How the queries and the keys of an attention are rotated."""

    query: Tensor  # [2, Q, A/2], cosines and sines; or [2, G, 1, Q, A/2] if those of G groups differ
    key: Tensor | None  # [2, J, A/2]; None for keys that are rotated already


def rotations(positions: Tensor, head_size: int, base: float, dtype: torch.dtype) -> Tensor:
    """Cosines and sines of the angles of each position.

    Args:
        positions: integers [T].
        head_size: A, even.
        base: frequency a of A/2 is base^(-2a / A), a from 0.
        dtype: type of the hidden states.

    Returns:
        [2, T, A/2], float64 for float64 states, else float32: half precision holds integers only up to 256.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=exact) / head_size
    angles = positions.to(exact)[:, None] * base**-exponents
    return torch.stack([angles.cos(), angles.sin()])


def rotate(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Rotate `vectors` [..., T, A] by `rotation` [2, T, A/2]."""
    cosine, sine = rotation
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1).to(vectors.dtype)


def rotary_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotation: Rotations,
    *,
    present: Tensor | None = None,
    causal: bool = False,
    documents: Tensor | None = None,
) -> Tensor:
    """Attend to all tokens of all key blocks jointly; the arguments are those of `relative_attention`.

    Args:
        query: [H, G, P, Q, A].
        key: [H, G, S, J, A].
        value: [H, G, S, J, A].
        rotation: of the Q queries and the J keys of a block.
        present: bool [G, S, J], False where a key is padding; None if there is no padding.
        causal: whether a query sees only its own key and earlier ones; the queries belong to the last Q of the J tokens
            (P = S = 1, Q <= J).
        documents: integers [G, J], the document of each token, to keep causal attention within documents.

    Returns:
        [H, G, P, Q, A]. A query without any key gets an arbitrary finite vector, never NaN: the caller discards it.
    """
    mask, past = None, key.shape[3] - query.shape[3]
    if present is not None:
        keys = present.flatten(1)
        keys = keys | ~keys.any(dim=1, keepdim=True)  # with no key at all, attend to padding: kernels disagree there
        mask = keys[None, :, None]  # [1, G, 1, SJ]
    if documents is not None:
        mask = (documents[:, past:, None] == documents[:, None]).tril(past)[None]  # [1, G, Q, J]
    elif causal and past and query.shape[3] > 1:  # torch's is_causal aligns the first query with the first key
        mask = torch.ones(query.shape[3], key.shape[3], dtype=torch.bool, device=query.device).tril_(past)
    attended = F.scaled_dot_product_attention(
        rotate(query, rotation.query).flatten(2, 3),
        (key if rotation.key is None else rotate(key, rotation.key)).flatten(2, 3),
        value.flatten(2, 3),
        attn_mask=mask,
        is_causal=causal and mask is None and not past,  # causal without a mask, so that the fastest kernel applies
    )
    return attended.unflatten(2, query.shape[2:4])
