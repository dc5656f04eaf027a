"""Settings that cannot work are refused in one sentence; settings that can are all used."""

import dataclasses
from typing import Any

import pytest
import torch
from model_builders import VOCABULARY, random_tokens, small_choices, small_size
from torch import Tensor

from retro_lab.errors import ConfigurationError
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel

BAD_SIZES: list[tuple[dict[str, Any], str]] = [
    ({"cca_layers": [0]}, r"size\.cca_layers counts layers from 1 to size\.layers \(3\), so 0 is not one"),
    ({"cca_layers": [4]}, r"size\.cca_layers .* 4"),
    ({"cca_layers": [2, 2]}, r"size\.cca_layers names a layer twice: \[2, 2\]"),
    ({"encoder_ca_layers": [0]}, r"size\.encoder_ca_layers .* 0"),
    ({"encoder_ca_layers": [3]}, r"size\.encoder_ca_layers .* 3"),
    ({"width": 7}, r"size\.width must be even.* 7"),
    ({"encoder_width": 5}, r"size\.encoder_width must be even.* 5"),
    ({"width": 0}, r"size\.width must be a positive whole number, not 0"),
    ({"layers": -1}, r"size\.layers must be a positive whole number, not -1"),
    ({"heads": 0}, r"size\.heads"),
    ({"head_size": 0}, r"size\.head_size"),
    ({"ffw_width": 0}, r"size\.ffw_width"),
    ({"ffw_width": "???"}, r"size\.ffw_width must be a positive whole number, not '\?\?\?'"),
    ({"encoder_heads": 0}, r"size\.encoder_heads"),
    ({"encoder_layers": 0}, r"size\.encoder_layers"),
]
BAD_CHOICES: list[tuple[dict[str, Any], str]] = [
    ({"chunk_length": 0}, r"model\.chunk_length must be a positive whole number, not 0"),
    ({"positions": "alibi"}, r"model\.positions must be one of transformer_xl, rotary, not 'alibi'"),
    ({"rotary_base": 0.0}, r"model\.rotary_base must be positive, not 0\.0"),
    ({"activation": "swiglu"}, r"model\.activation must be one of gelu, relu, not 'swiglu'"),
    ({"dropout": 1.0}, r"model\.dropout must be at least 0 and below 1, not 1\.0"),
    ({"dropout": -0.1}, r"model\.dropout"),
    ({"norm_eps": 0.0}, r"model\.norm_eps must be positive, not 0\.0"),
    ({"init_std": -1.0}, r"model\.init_std"),
    (
        {"shared_embeddings": True},
        r"model\.shared_embeddings=true needs size\.encoder_width \(6\) to equal size\.width",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SIZES)
def test_an_impossible_size_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RetroModel(small_size(**changes), small_choices(), VOCABULARY)


@pytest.mark.parametrize(("changes", "message"), BAD_CHOICES)
def test_an_impossible_choice_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RetroModel(small_size(), small_choices(**changes), VOCABULARY)


@pytest.mark.parametrize("key", ["head_size", "encoder_head_size"])
def test_rotary_positions_need_pairs(key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"size\.{key} must be even.* 5"):
        RetroModel(small_size(**{key: 5}), small_choices(positions="rotary"), VOCABULARY)


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the vocabulary size must be a positive whole number, not 0"):
        RetroModel(small_size(), small_choices(), 0)


def test_a_baseline_does_not_care_about_the_encoders_settings() -> None:
    RetroModel(small_size(cca_layers=[], encoder_layers=0, encoder_width=3), small_choices(), VOCABULARY)


@pytest.mark.parametrize(
    ("neighbors", "lengths", "message"),
    [
        ((2, 2, 2, 8), None, r"need neighbors \[2, 3 or more, k, r\] at chunk length 4, not \[2, 2, 2, 8\]"),
        ((1, 3, 2, 8), None, r"not \[1, 3, 2, 8\]"),
        ((2, 3, 8), None, r"not \[2, 3, 8\]"),
        ((2, 3, 2, 8), (2, 3), r"neighbor_lengths must be \[2, 3, 2\]"),
    ],
)
def test_neighbors_that_do_not_fit_the_tokens_are_refused(
    neighbors: tuple[int, ...], lengths: tuple[int, ...] | None, message: str
) -> None:
    model = RetroModel(small_size(), small_choices(), VOCABULARY)
    with pytest.raises(ValueError, match=message):
        model(random_tokens(2, 14), random_tokens(*neighbors), None if lengths is None else random_tokens(*lengths))


def test_a_baseline_refuses_neighbors() -> None:
    """Silently ignored neighbors look like retrieval that does not help."""
    with pytest.raises(ValueError, match="takes no neighbors"):
        RetroModel(small_size(cca_layers=[]), small_choices(), VOCABULARY)(
            random_tokens(1, 8), random_tokens(1, 2, 2, 8)
        )


# A value that differs from the one in `small_size` and `small_choices`, for every field of the two groups.
OTHER_SIZE: dict[str, Any] = {
    "width": 6,
    "ffw_width": 5,
    "heads": 1,
    "head_size": 3,
    "layers": 4,
    "cca_layers": [1],
    "encoder_width": 8,
    "encoder_ffw_width": 5,
    "encoder_heads": 1,
    "encoder_head_size": 3,
    "encoder_layers": 3,
    "encoder_ca_layers": [2],
}
OTHER_CHOICES: dict[str, Any] = {
    "chunk_length": 5,
    "query_conditioning": False,
    "cca_positions": False,
    "positions": "rotary",
    "rotary_base": 10.0,
    "document_masks": True,
    "shared_embeddings": True,
    "tied_readout": False,
    "activation": "relu",
    "norm_eps": 0.1,
    "dropout": 0.5,
    "init_std": 0.1,
}


def fingerprint(size: SizeConfig, choices: ModelConfig) -> tuple[list[tuple[str, torch.Size]], Tensor]:
    """What a model is: its parameters' names and shapes, and what it computes in training mode."""
    torch.manual_seed(0)
    model = RetroModel(size, choices, VOCABULARY)
    torch.manual_seed(0)
    model.reset_parameters()
    documents = torch.arange(15)[None] // 8 if choices.document_masks else None
    hidden = model(random_tokens(1, 15), random_tokens(1, 3, 2, 8), None, documents)
    return [(name, p.shape) for name, p in model.named_parameters()], model.logits(hidden)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(SizeConfig) if f.name != "name"])
def test_every_setting_of_the_size_is_used(field: str) -> None:
    """Peers' bug 11 (lucidrains): `heads=` was accepted and ignored."""
    before = fingerprint(small_size(), small_choices())
    after = fingerprint(small_size(**{field: OTHER_SIZE[field]}), small_choices())
    assert before[0] != after[0] or not torch.equal(before[1], after[1])


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ModelConfig)])
def test_every_setting_of_the_model_is_used(field: str) -> None:
    """Peers' bug 11 again."""
    size = small_size(encoder_width=8)
    others = {"positions": "rotary"} if field == "rotary_base" else {}
    before = fingerprint(size, small_choices(**others))
    after = fingerprint(size, small_choices(**others, **{field: OTHER_CHOICES[field]}))
    assert before[0] != after[0] or not torch.equal(before[1], after[1])
