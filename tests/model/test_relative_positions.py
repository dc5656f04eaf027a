"""Position logits depend on the distance alone, and the distance is the paper's."""

from collections.abc import Callable

import pytest
import torch
from model_builders import random_tokens, small_model
from naive_retro import sinusoid

from retro_lab.model import distances as distances_module
from retro_lab.model.positions import align_distances, descending_distances, sinusoids


@pytest.mark.parametrize(
    ("queries", "keys", "offset"), [(4, 8, 3), (8, 4, 0), (1, 1, 0), (1, 5, 0), (5, 1, 4), (64, 128, 63)]
)
def test_aligned_distances_are_query_minus_key_plus_offset(queries: int, keys: int, offset: int) -> None:
    distances = descending_distances(queries, keys, offset, torch.device("cpu"))
    aligned = align_distances(distances.repeat(queries, 1), keys)
    expected = torch.arange(queries)[:, None] - torch.arange(keys) + offset
    assert torch.equal(aligned, expected)


def test_aligned_distances_of_a_causal_block_need_no_negative_distance() -> None:
    """A block of queries 2, 3, 4 sees keys 0 to 4: five distances and the filler are enough for the past."""
    distances = torch.arange(4, -2, -1)
    aligned = align_distances(distances.repeat(3, 1), 5)
    expected = torch.arange(2, 5)[:, None] - torch.arange(5)
    past = expected >= 0
    assert torch.equal(aligned[past], expected[past])


def test_sinusoids_are_those_of_the_slow_model() -> None:
    distances = torch.tensor([-64, -1, 0, 1, 126, 2047])
    expected = torch.stack([sinusoid(int(distance), 10) for distance in distances])
    torch.testing.assert_close(sinusoids(distances, 10, torch.float64), expected, rtol=0, atol=1e-12)


def test_chunked_cross_attention_sees_the_distances_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers' bugs 1 (lucidrains: queries at [126, 0, ..., 0]) and 19 (retriever: offset m, not m - 1).

    d(i, i') = i - i' + m - 1 for i in 1..m and i' in 1..2m: from -64 to 126 at m = 64, and 0 for the last token of
    the neighbor's first chunk seen from the first attending token, which is the last token of the query's chunk.
    """
    recorded: list[tuple[int, int, int]] = []
    original: Callable[..., torch.Tensor] = descending_distances

    def record(queries: int, keys: int, offset: int, device: torch.device) -> torch.Tensor:
        recorded.append((queries, keys, offset))
        return original(queries, keys, offset, device)

    monkeypatch.setattr(distances_module, "descending_distances", record)
    small_model()(random_tokens(1, 8), random_tokens(1, 2, 2, 8))
    m, r = 4, 8
    # Of the decoder's self-attention; of the encoder's self-attention and its cross-attention; of all CCA layers.
    assert recorded == [(8, 1, 0), (r, r, 0), (r, m, 0), (m, r, m - 1)]

    by_pair = align_distances(descending_distances(64, 128, 63, torch.device("cpu")).repeat(64, 1), 128)
    assert (by_pair.min(), by_pair.max()) == (-64, 126)
    assert by_pair[0, 63] == 0
