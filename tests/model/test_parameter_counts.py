"""Table 2 of Borgeaud et al. 2022: eight models, counted on the meta device without a byte of weights."""

import pytest
import torch
from model_builders import small_choices, small_size

from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel

# name, width, ffw width, heads, head size, layers, P, baseline and RETRO in millions (excluding embeddings)
TABLE_2 = [
    ("172m", 896, 3_584, 16, 64, 12, range(6, 13, 3), 132, 172),
    ("425m", 1_536, 6_144, 12, 128, 12, range(6, 13, 3), 368, 425),
    ("1.5b", 2_048, 8_192, 16, 128, 24, range(6, 25, 3), 1_309, 1_451),
    ("7.5b", 4_096, 16_384, 32, 128, 32, range(6, 33, 3), 6_982, 7_532),
]
TABLE_10_WITH_EMBEDDINGS = {"172m": 247, "425m": 564, "1.5b": 1_574, "7.5b": 7_505}


def meta_model(row: tuple[str, int, int, int, int, int, range, int, int], *, retrieval: bool) -> RetroModel:
    """Build a model of Table 2 on the meta device, with the paper's vocabulary."""
    name, width, ffw_width, heads, head_size, layers, cca_layers, _, _ = row
    size = SizeConfig(
        name=name,
        width=width,
        ffw_width=ffw_width,
        heads=heads,
        head_size=head_size,
        layers=layers,
        cca_layers=list(cca_layers) if retrieval else [],
    )
    with torch.device("meta"):
        return RetroModel(size, ModelConfig(), 128_000)


@pytest.mark.parametrize("row", TABLE_2, ids=lambda row: row[0])
def test_table_2_counts_come_out(row: tuple[str, int, int, int, int, int, range, int, int]) -> None:
    baseline, retro = (meta_model(row, retrieval=on).parameter_counts() for on in (False, True))
    assert baseline["non_embedding"] / 1e6 == pytest.approx(row[7], rel=0.005)
    assert retro["non_embedding"] / 1e6 == pytest.approx(row[8], rel=0.005)
    assert baseline["decoder"] == retro["decoder"] == baseline["non_embedding"]
    assert baseline["total"] / 1e6 == pytest.approx(TABLE_10_WITH_EMBEDDINGS[row[0]], rel=0.005)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_parts_add_up_to_all_parameters(shared: bool, tied: bool) -> None:
    size = small_size(encoder_width=8)
    model = RetroModel(size, small_choices(shared_embeddings=shared, tied_readout=tied), 23)
    counts = model.parameter_counts()
    parts = ("decoder", "chunked_cross_attention", "encoder", "embeddings")
    assert sum(counts[part] for part in parts) == counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["embeddings"] == 23 * 8 * (1 + (not shared) + (not tied))
    assert counts["non_embedding"] == counts["total"] - counts["embeddings"]
