"""Refuse impossible sizes and choices, in one sentence that names the key and the value."""

from collections.abc import Sequence

from retro_lab.errors import ConfigurationError
from retro_lab.model.blocks import ACTIVATIONS
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.distances import POSITIONS, ROTARY

_DECODER_KEYS = ("width", "ffw_width", "heads", "head_size", "layers")
_ENCODER_KEYS = ("encoder_width", "encoder_ffw_width", "encoder_heads", "encoder_head_size", "encoder_layers")


def check_model(size: SizeConfig, model: ModelConfig, vocabulary_size: int) -> None:
    """Check all values together.

    Raises:
        ConfigurationError: a value, or a combination of values, that cannot work.
    """
    retrieval = len(size.cca_layers) > 0
    for key in _DECODER_KEYS + (_ENCODER_KEYS if retrieval else ()):
        _check_positive(f"size.{key}", getattr(size, key))
    _check_positive("model.chunk_length", model.chunk_length)
    _check_positive("the vocabulary size", vocabulary_size)
    _check_even("size.width", size.width)
    _check_layers("size.cca_layers", size.cca_layers, "size.layers", size.layers)
    if retrieval:
        _check_even("size.encoder_width", size.encoder_width)
        _check_layers("size.encoder_ca_layers", size.encoder_ca_layers, "size.encoder_layers", size.encoder_layers)
        if model.shared_embeddings and size.width != size.encoder_width:
            raise ConfigurationError(
                f"model.shared_embeddings=true needs size.encoder_width ({size.encoder_width}) to equal "
                f"size.width ({size.width})."
            )
    if model.positions not in POSITIONS:
        raise ConfigurationError(f"model.positions must be one of {', '.join(POSITIONS)}, not {model.positions!r}.")
    if model.positions == ROTARY:
        for key in ("head_size", *(("encoder_head_size",) if retrieval else ())):
            _check_even(f"size.{key}", getattr(size, key))
    if model.activation not in ACTIVATIONS:
        raise ConfigurationError(f"model.activation must be one of {', '.join(ACTIVATIONS)}, not {model.activation!r}.")
    if not 0 <= model.dropout < 1:
        raise ConfigurationError(f"model.dropout must be at least 0 and below 1, not {model.dropout}.")
    for key in ("norm_eps", "init_std", "rotary_base"):
        if not getattr(model, key) > 0:
            raise ConfigurationError(f"model.{key} must be positive, not {getattr(model, key)}.")


def _check_positive(key: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{key} must be a positive whole number, not {value!r}.")


def _check_even(key: str, value: int) -> None:
    if value % 2:
        raise ConfigurationError(f"{key} must be even, because positions are pairs of sine and cosine, not {value}.")


def _check_layers(key: str, numbers: Sequence[int], limit_key: str, limit: int) -> None:
    for number in numbers:
        if not 1 <= number <= limit:
            raise ConfigurationError(f"{key} counts layers from 1 to {limit_key} ({limit}), so {number} is not one.")
    if len(set(numbers)) < len(numbers):
        raise ConfigurationError(f"{key} names a layer twice: {list(numbers)}.")
