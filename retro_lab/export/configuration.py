"""The configuration of an exported model, as transformers reads it from config.json."""

import importlib
from typing import Any, ClassVar

# From the module that defines it: this one is imported while the Auto classes are (`retro_lab.export.registration`).
from transformers.configuration_utils import PreTrainedConfig


class RetroConfig(PreTrainedConfig):
    """Everything that an exported model is built from."""

    model_type = "retro_lab"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    settings: dict[str, Any] | None = None
    """Fields of `retro_lab.runs.trained_model.ModelSettings`."""
    base: dict[str, Any] | None = None
    """Configuration of the pretrained decoder that the model is a RETROfit of; None for the paper's decoder."""
    run: dict[str, str] | None = None
    """The run's name, the model's, and the fingerprint of what decided it."""
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Register the model and the tokenizer that belong to this configuration."""
        super().__post_init__(**kwargs)
        importlib.import_module("retro_lab.export.modeling")

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self._settings["vocabulary_size"])

    @property
    def hidden_size(self) -> int:
        """Width of the decoder."""
        return int(self._settings["size"]["width"])

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the decoder."""
        return int(self._settings["size"]["layers"])

    @property
    def num_attention_heads(self) -> int:
        """Heads of the decoder."""
        return int(self._settings["size"]["heads"])

    @property
    def max_position_embeddings(self) -> int:
        """Tokens of a training sequence: positions are relative, but the model has seen no greater distances."""
        return int(self._settings["sequence_length"])

    @property
    def _settings(self) -> dict[str, Any]:
        if self.settings is None:
            raise AttributeError("This RetroConfig has no settings; take it from a folder that task=export wrote.")
        return self.settings
