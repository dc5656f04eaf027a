"""Closed-form FLOPs against a counter on real models, against a count token by token, and against planned figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_builders import VOCABULARY, small_choices, small_size
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from retro_lab.cost.flops import TRAINING_TO_FORWARD, Flops, executed_flops, required_flops
from retro_lab.errors import ConfigurationError
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel

SIZES = Path(__file__).parents[2] / "conf" / "size"
PAPER_VOCABULARY = 128_000
PAPER = {"sequence_length": 2_048, "k": 2, "neighbor_length": 128}


def paper_size(name: str) -> SizeConfig:
    """A row of Table 2, from the shipped file."""
    return SizeConfig(**OmegaConf.to_container(OmegaConf.load(SIZES / f"{name}.yaml").size))


def batched_product(left: Sequence[int], right: Sequence[int]) -> int:
    """FLOPs of [b, n, d] times [b, d, m]; of [n, d] times [d, m] too."""
    *batch, rows, inner = left
    return 2 * (batch[0] if batch else 1) * rows * inner * right[-1]


def counter() -> FlopCounterMode:
    """Torch's counter, told of what it does not know: products that add to their own memory, and a processor's fused
    attention, which it counts as whole on other devices.
    """

    def flops(added_to: Any, left: Any, right: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
        return batched_product(left, right)

    def attention_flops(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
        batch, heads, queries, head_size = query
        return 2 * 2 * batch * heads * queries * key[2] * head_size

    aten = torch.ops.aten
    told = {
        aten.baddbmm_: flops,
        aten.addmm_: flops,
        aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=told)


def inputs(model: RetroModel, b: int, n: int, k: int, r: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A batch of one token, on the model's device."""
    device = model.embedding.weight.device
    tokens = torch.zeros(b, n, dtype=torch.long, device=device)
    return tokens, torch.zeros(b, n // model.chunk_length, k, r, dtype=torch.long, device=device) if k else None


def counted(model: RetroModel, b: int, n: int, k: int, r: int) -> Flops:
    """What the counter sees in a forward pass, by module."""
    with counter() as seen, torch.no_grad():
        model.logits(model(*inputs(model, b, n, k, r)))

    def of(*suffixes: str) -> int:
        return sum(sum(flops.values()) for name, flops in seen.flop_counts.items() if name in suffixes)

    def of_layers(block: str) -> int:
        return of(*(f"RetroModel.layers.{number}.{block}" for number in range(len(model.layers))))

    return Flops(
        self_attention=of_layers("attention"),
        feed_forward=of_layers("feed_forward"),
        chunked_cross_attention=of_layers("cca"),
        encoder=of("RetroModel.encoder"),
        readout=of("Global") - of("RetroModel"),
    )


@st.composite
def models(draw: st.DrawFn) -> tuple[SizeConfig, ModelConfig]:
    """Any small RETRO or baseline."""
    number = st.integers(1, 4)
    positions = draw(st.sampled_from(["transformer_xl", "rotary"]))
    head_sizes = number if positions == "transformer_xl" else st.sampled_from([2, 4])
    layers, encoder_layers = draw(number), draw(number)
    size = small_size(
        width=2 * draw(number),
        ffw_width=draw(number),
        heads=draw(number),
        head_size=draw(head_sizes),
        layers=layers,
        cca_layers=draw(st.lists(st.integers(1, layers), unique=True)),
        encoder_width=2 * draw(number),
        encoder_ffw_width=draw(number),
        encoder_heads=draw(number),
        encoder_head_size=draw(head_sizes),
        encoder_layers=encoder_layers,
        encoder_ca_layers=draw(st.lists(st.integers(1, encoder_layers), unique=True)),
    )
    switches = {name: draw(st.booleans()) for name in ("query_conditioning", "cca_positions", "tied_readout")}
    return size, small_choices(chunk_length=draw(number), positions=positions, **switches)


@given(
    models=models(),
    b=st.integers(1, 3),
    n=st.integers(1, 20) | st.integers(120, 140) | st.integers(250, 260),
    k=st.integers(0, 3),
    r=st.integers(1, 9),
)
def test_executed_flops_are_what_a_counter_sees(
    models: tuple[SizeConfig, ModelConfig], b: int, n: int, k: int, r: int
) -> None:
    size, choices = models
    k = k if size.cca_layers else 0
    expected = counted(RetroModel(size, choices, VOCABULARY), b, n, k, r)
    assert executed_flops(size, choices, VOCABULARY, sequences=b, sequence_length=n, k=k, neighbor_length=r) == expected


@pytest.mark.parametrize("name", ["172m", "7_5b"])
@pytest.mark.parametrize("k", [0, 2, 10])
def test_executed_flops_of_the_papers_sizes(name: str, k: int) -> None:
    size, shape = paper_size(name), PAPER | {"k": k}
    with torch.device("meta"):
        model = RetroModel(size, ModelConfig(), PAPER_VOCABULARY)
    executed = executed_flops(size, ModelConfig(), PAPER_VOCABULARY, sequences=2, **shape)
    assert executed == counted(model, 2, 2_048, k, 128)
    required = required_flops(size, ModelConfig(), PAPER_VOCABULARY, **shape)
    assert 1 < executed.total / (2 * required.total) < 1.05
    for part, flops in required.parts().items():
        assert executed.parts()[part] >= 2 * flops, part


def required_token_by_token(size: SizeConfig, model: ModelConfig, n: int, k: int, r: int) -> Flops:
    """The definition, in loops: what each token of each stream is multiplied with."""
    m, chunks = model.chunk_length, n // model.chunk_length if k else 0
    d, i, e, j = (
        size.width,
        size.heads * size.head_size,
        size.encoder_width,
        size.encoder_heads * size.encoder_head_size,
    )
    learned = model.positions == "transformer_xl"
    attention = cca = encoder = 0
    for token in range(n):
        attention += 2 * 4 * d * i
        for _ in range(token + 1):
            attention += 2 * (2 + learned) * i  # content, value, position
        if token >= m - 1 and chunks:
            cca += 2 * 2 * d * i
            for _ in range(r):
                cca += 2 * i * (model.cca_positions and learned) + 2 * 2 * i * k
    for _ in range(chunks):
        for _ in range(k * r):
            cca += 2 * 2 * e * i
            encoder += size.encoder_layers * 2 * (4 * e * j + 2 * e * size.encoder_ffw_width + (2 + learned) * j * r)
            conditioning = 2 * e * j + (2 + learned) * j * m
            encoder += len(size.encoder_ca_layers) * model.query_conditioning * 2 * conditioning
        encoder += len(size.encoder_ca_layers) * model.query_conditioning * m * 2 * 2 * d * j
    return Flops(
        self_attention=size.layers * attention,
        feed_forward=size.layers * n * 2 * 2 * d * size.ffw_width,
        chunked_cross_attention=len(size.cca_layers) * cca,
        encoder=encoder,
        readout=n * 2 * d * VOCABULARY,
    )


@given(models=models(), n=st.integers(1, 20), k=st.integers(0, 3), r=st.integers(1, 9))
def test_required_flops_are_those_of_each_token(models: tuple[SizeConfig, ModelConfig], n: int, k: int, r: int) -> None:
    size, choices = models
    k = k if size.cca_layers else 0
    required = required_flops(size, choices, VOCABULARY, sequence_length=n, k=k, neighbor_length=r)
    assert required == required_token_by_token(size, choices, n, k, r)
    assert required.total == sum(required.parts().values())
    assert required.times(3).total == 3 * required.total


# Planned before any code was written, with R neighbor tokens for all N tokens of a sequence (in the paper the first
# M - 1 have none) and M + R - 1 position logits for each (R are needed). GFLOP forward per token at k = 2: decoder,
# encoder, CCA, read-out; training; percent of overhead at k = 1, 2, 4, 10, 40; H100 hours of RETRO and baseline.
PLANNED = {
    "172m": ((0.318, 0.188, 0.059, 0.229), 2.38, (24, 45, 87, 214, 848), 702, 483),
    "425m": ((0.793, 0.190, 0.101, 0.393), 4.43, (14, 25, 46, 110, 433), 1_305, 1_048),
    "1_5b": ((2.718, 0.192, 0.343, 0.524), 11.3, (10, 17, 29, 66, 253), 3_338, 2_865),
    "7_5b": ((13.69, 0.201, 1.184, 1.049), 48.4, (7, 9, 14, 30, 106), 14_246, 13_022),
}
H100_FLOPS_PER_HOUR = 0.4 * 989e12 * 3_600
TRAINING_TOKENS = 419_430_400_000


@pytest.mark.parametrize("name", PLANNED)
def test_planned_figures_of_the_papers_sizes(name: str) -> None:
    parts, training, overheads, hours, baseline_hours = PLANNED[name]

    def per_token(k: int) -> Flops:
        shape = PAPER | {"k": k}
        flops = required_flops(paper_size(name), ModelConfig(), PAPER_VOCABULARY, **shape)
        return flops.times(1 / 2_048)

    retro, baseline = per_token(2), per_token(0)
    decoder = retro.self_attention + retro.feed_forward
    assert decoder / 1e9 == pytest.approx(parts[0], rel=0.005)
    assert retro.encoder / 1e9 == pytest.approx(parts[1], rel=0.005)
    assert retro.chunked_cross_attention / 1e9 == pytest.approx(parts[2], rel=0.025)
    assert retro.readout / 1e9 == pytest.approx(parts[3], rel=0.005)
    assert TRAINING_TO_FORWARD * retro.total / 1e9 == pytest.approx(training, rel=0.005)
    for k, overhead in zip((1, 2, 4, 10, 40), overheads, strict=True):
        assert 100 * (per_token(k).total / baseline.total - 1) == pytest.approx(overhead, abs=1, rel=0.01)
    for model, planned in ((retro, hours), (baseline, baseline_hours)):
        needed = TRAINING_TO_FORWARD * model.total * TRAINING_TOKENS / H100_FLOPS_PER_HOUR
        assert needed == pytest.approx(planned, rel=0.005)


@pytest.mark.parametrize("k", [0, 2])
def test_a_training_step_is_three_forward_passes_and_a_little(k: int) -> None:
    """What is more than the architecture needs: tiles, distances, and logits that are formed again on the way back."""
    size = paper_size("172m")
    with torch.device("meta"):
        model = RetroModel(size, ModelConfig(), PAPER_VOCABULARY)
    with counter() as seen:
        model.logits(model(*inputs(model, 2, 2_048, k, 128))).sum().backward()
    required = required_flops(size, ModelConfig(), PAPER_VOCABULARY, **(PAPER | {"k": k}))
    assert 1.04 < seen.get_total_flops() / (TRAINING_TO_FORWARD * 2 * required.total) < 1.06


def test_retro_off_takes_what_the_baseline_takes() -> None:
    shape = {"sequence_length": 32, "neighbor_length": 8}
    off = required_flops(small_size(), small_choices(), VOCABULARY, **shape)
    assert off == required_flops(small_size(cca_layers=[]), small_choices(), VOCABULARY, **shape)
    assert off.encoder == off.chunked_cross_attention == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 0}, "The sequence length must be at least 1, not 0"),
        ({"sequences": 0}, "The number of sequences must be at least 1, not 0"),
        ({"k": -1}, "The number of neighbors must be at least 0, not -1"),
        ({"neighbor_length": 0}, "Neighbors must have at least 1 token, not 0"),
        ({"size": small_size(cca_layers=[])}, r"2 neighbors for each chunk .* size\.cca_layers is empty"),
        ({"size": small_size(heads=0)}, r"size\.heads must be a positive whole number"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    given_values = {"size": small_size(), "sequences": 1, "sequence_length": 8, "k": 2, "neighbor_length": 8}
    with pytest.raises(ConfigurationError, match=message):
        executed_flops(model=small_choices(), vocabulary_size=VOCABULARY, **(given_values | changes))
