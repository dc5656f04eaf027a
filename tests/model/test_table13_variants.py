"""Every model of the ablation table (Borgeaud et al. 2022, Table 13) builds and learns."""

from typing import Any

import pytest
import torch
from model_builders import VOCABULARY, random_tokens, small_choices, small_size

from retro_lab.model.retro import RetroModel

LAYERS = 12
DEFAULT: dict[str, Any] = {"layers": LAYERS, "cca_layers": [6, 9, 12], "encoder_width": 8}
M = 4

# id, changes of the size, changes of the model, k, r
VARIANTS = [
    ("default", {}, {}, 2, 2 * M),
    ("no-query-conditioning", {}, {"query_conditioning": False}, 2, 2 * M),
    ("no-ca-positional-encodings", {}, {"cca_positions": False}, 2, 2 * M),
    ("shared-embeddings", {}, {"shared_embeddings": True}, 2, 2 * M),
    ("6-layer-encoder", {"encoder_layers": 6}, {}, 2, 2 * M),
    ("neighbors-n-only", {}, {}, 2, M),
    ("continuations-f-only", {}, {}, 2, M),
    ("no-retrieval", {"cca_layers": []}, {}, 0, 0),
    ("1-training-neighbor", {}, {}, 1, 2 * M),
    ("4-training-neighbors", {}, {}, 4, 2 * M),
    ("ca-first-layer", {"cca_layers": [1]}, {}, 2, 2 * M),
    ("ca-mid-layer", {"cca_layers": [6]}, {}, 2, 2 * M),
    ("ca-top-layer", {"cca_layers": [12]}, {}, 2, 2 * M),
    ("ca-all-layers", {"cca_layers": list(range(1, LAYERS + 1))}, {}, 2, 2 * M),
    ("ca-every-3-from-1", {"cca_layers": [1, 4, 7, 10]}, {}, 2, 2 * M),
]


@pytest.mark.parametrize(("size", "model", "k", "r"), [v[1:] for v in VARIANTS], ids=[v[0] for v in VARIANTS])
def test_table13_variant_builds_and_learns(size: dict[str, Any], model: dict[str, Any], k: int, r: int) -> None:
    torch.manual_seed(0)
    built = RetroModel(small_size(**(DEFAULT | size)), small_choices(init_std=0.1, **model), VOCABULARY)
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-2)
    tokens, targets = random_tokens(2, 14), random_tokens(2, 14, seed=2)
    neighbors = random_tokens(2, 3, k, r, seed=3) if k else None
    mask = torch.ones_like(tokens, dtype=torch.bool)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = built.loss(tokens, targets, mask, neighbors)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_table13_no_query_conditioning_encodes_without_the_decoder() -> None:
    built = RetroModel(small_size(), small_choices(query_conditioning=False), VOCABULARY)
    assert not any("cross_attention" in name or "chunk_norm" in name for name, _ in built.encoder.named_parameters())


def test_table13_no_ca_positions_leaves_positions_elsewhere() -> None:
    built = RetroModel(small_size(), small_choices(cca_positions=False), VOCABULARY)
    names = [name for name, _ in built.named_parameters() if "positions" in name]
    assert names
    assert not any(".cca." in name for name in names)
