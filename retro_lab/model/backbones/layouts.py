"""Where the blocks of each Hugging Face decoder are: what chunked cross-attention needs to know of an architecture.

A layer adds the result a of its attention to its residual stream x. `Layout.attention` names the module that computes
a, with everything that the layer does to it before the sum (a dropout or a norm after the attention). RETROfit makes
that result a + CCA(norm(x + a)), so that CCA comes between attention and feed-forward network, as in RETRO.

Where attention and feed-forward network are parallel, a layer computes x + a + FFW(x). CCA then reads x + a as well,
and the layer's result is x + a + CCA(norm(x + a)) + FFW(x): only the next layers' feed-forward networks see what CCA
added.
"""

from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from retro_lab.errors import ConfigurationError
from retro_lab.model.config import SizeConfig
from retro_lab.model.kernels.cross_entropy import Readout


@dataclass(frozen=True)
class Layout:
    """The blocks of one architecture."""

    layers: str = "layers"
    """The list of layers in the model below the language-model head."""
    attention: str = "self_attn"
    """The module of a layer whose result, or the first of whose results, the layer adds to the residual stream."""
    attention_factor: str | None = None
    """Key of the base's configuration: the number that the layer multiplies that result with before it is added."""
    logits_divisor: str | None = None
    """Key of the base's configuration: the number that the logits are divided by."""


_LLAMA = Layout()
_NORM_AFTER_ATTENTION = Layout(attention="post_attention_layernorm")

LAYOUTS = {
    "falcon": Layout(layers="h", attention="self_attention"),
    "gemma": _LLAMA,
    "gemma2": _NORM_AFTER_ATTENTION,
    "gemma3_text": _NORM_AFTER_ATTENTION,
    "gpt2": Layout(layers="h", attention="attn"),
    "gpt_neo": Layout(layers="h", attention="attn"),
    "gpt_neox": Layout(attention="post_attention_dropout"),
    "gptj": Layout(layers="h", attention="attn"),
    "granite": Layout(attention_factor="residual_multiplier", logits_divisor="logits_scaling"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _NORM_AFTER_ATTENTION,
    "olmo3": _NORM_AFTER_ATTENTION,
    "opt": Layout(layers="decoder.layers"),
    "phi": _LLAMA,
    "phi3": Layout(attention="resid_attn_dropout"),
    "qwen2": _LLAMA,
    "qwen2_moe": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
}
"""By the `model_type` of a configuration."""


def layout_of(config: PretrainedConfig) -> Layout:
    """Return the layout of an architecture.

    Raises:
        ConfigurationError: It has none.
    """
    if config.model_type not in LAYOUTS:
        raise ConfigurationError(
            f"A model of the architecture {config.model_type!r} cannot be RETROfitted; these can: {', '.join(LAYOUTS)}."
        )
    return LAYOUTS[config.model_type]


def layers_of(base: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of a base, in each of which `attention_of` finds its module.

    Raises:
        ConfigurationError: Its architecture has no layout, or is built in another way than its layout says.
    """
    layout = layout_of(base.config)
    try:
        layers = list(cast("nn.ModuleList", base.base_model.get_submodule(layout.layers)))
        for layer in layers:
            layer.get_submodule(layout.attention)
    except AttributeError as error:
        raise _changed(base, str(error)) from error
    if len(layers) != base.config.num_hidden_layers:
        raise _changed(base, f"{layout.layers} has {len(layers)} layers, not {base.config.num_hidden_layers}")
    return layers


def attention_of(base: PreTrainedModel, layer: nn.Module) -> nn.Module:
    """Return the module of a layer whose result the layer adds to its residual stream."""
    return layer.get_submodule(layout_of(base.config).attention)


def attention_factor(config: PretrainedConfig) -> float:
    """Return the number that a layer multiplies the result of its attention with."""
    key = layout_of(config).attention_factor
    return 1.0 if key is None else float(getattr(config, key))


def readout_of(base: PreTrainedModel) -> Readout:
    """Return what the base computes its logits with.

    Raises:
        ConfigurationError: Its last layer is not linear.
    """
    head = base.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise _changed(base, f"its head is of type {type(head).__name__}, not Linear")
    key = layout_of(base.config).logits_divisor
    return Readout(
        weight=head.weight,
        bias=head.bias,
        divisor=1.0 if key is None else float(getattr(base.config, key)),
        cap=getattr(base.config, "final_logit_softcapping", None),
    )


def size_of(config: PretrainedConfig, encoder: SizeConfig, cca_layers: list[int] | None = None) -> SizeConfig:
    """Return the size of a RETROfitted model.

    Args:
        config: Of the base, which gives the decoder's width, heads and layers.
        encoder: Its encoder is taken; its decoder is not.
        cca_layers: P, empty for the base alone; None for every third layer from the sixth (Borgeaud et al. 2022, Table
            12).

    Raises:
        ConfigurationError: The architecture has no layout, or too few layers for the default.
    """
    layout_of(config)
    layers = int(config.num_hidden_layers)
    chosen = list(range(6, layers + 1, 3)) if cca_layers is None else list(cca_layers)
    if cca_layers is None and not chosen:
        raise ConfigurationError(
            f"The base has {layers} layers, and chunked cross-attention needs at least one of them: set "
            f"size.cca_layers to numbers from 1 to {layers}."
        )
    return SizeConfig(
        **(
            vars(encoder)
            | {
                "width": int(config.hidden_size),
                "ffw_width": _first(config, "intermediate_size", "ffn_dim", "n_inner") or 4 * int(config.hidden_size),
                "heads": int(config.num_attention_heads),
                "head_size": getattr(config, "head_dim", None)
                or int(config.hidden_size) // int(config.num_attention_heads),
                "layers": layers,
                "cca_layers": chosen,
            }
        )
    )


def _first(config: PretrainedConfig, *keys: str) -> Any:
    return next((value for key in keys if (value := getattr(config, key, None)) is not None), None)


def _changed(base: PreTrainedModel, reason: str) -> ConfigurationError:
    import transformers

    return ConfigurationError(
        f"transformers {transformers.__version__} builds a model of the architecture {base.config.model_type!r} in "
        f"another way than RETROfit knows ({reason}); install another version of transformers."
    )
