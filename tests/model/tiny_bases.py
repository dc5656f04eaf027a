"""Randomly initialized Hugging Face decoders of all architectures, and their RETROfit, for the tests of this folder."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from retro_lab.model.backbones.retrofitted import RetrofittedModel
from retro_lab.model.config import ModelConfig, SizeConfig

VOCABULARY, M = 64, 4
_WIDE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2}
_GROUPED = _WIDE | {"num_key_value_heads": 1, "head_dim": 6}
_GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}
_GEMMA2 = _GROUPED | {"sliding_window": 6, "query_pre_attn_scalar": 6}
_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 1}
_OPT: dict[str, Any] = {
    "hidden_size": 16, "ffn_dim": 20, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 32,
    "word_embed_proj_dim": 16,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon": ("falcon", _WIDE | {"multi_query": True}),
    "falcon, its new architecture": ("falcon", _WIDE | {"new_decoder_architecture": True, "num_kv_heads": 1}),
    "falcon with ALiBi, not parallel": ("falcon", _WIDE | {"alibi": True, "parallel_attn": False}),
    "gemma": ("gemma", _GROUPED),
    "gemma2": ("gemma2", _GEMMA2 | {"final_logit_softcapping": 0.5, "attn_logit_softcapping": 2.0}),
    "gemma3_text": ("gemma3_text", _GEMMA2 | {"layer_types": ["sliding_attention"] * 2 + ["full_attention"]}),
    "gpt2": ("gpt2", _GPT2),
    "gpt_neo": ("gpt_neo", _WIDE | {"num_layers": 3, "num_heads": 2, "attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 4}),  # noqa: E501
    "gpt_neox": ("gpt_neox", _WIDE),
    "gpt_neox, not parallel": ("gpt_neox", _WIDE | {"use_parallel_residual": False}),
    "gptj": ("gptj", _GPT2 | {"rotary_dim": 4}),
    "granite": ("granite", _WIDE | {"residual_multiplier": 0.3, "logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.4}),  # noqa: E501
    "llama": ("llama", _GROUPED),
    "llama, tied": ("llama", _GROUPED | {"tie_word_embeddings": True}),
    "mistral": ("mistral", _GROUPED | {"sliding_window": 6}),
    "mixtral": ("mixtral", _GROUPED | {"num_local_experts": 3}),
    "olmo": ("olmo", _WIDE),
    "olmo2": ("olmo2", _WIDE),
    "olmo3": ("olmo3", _WIDE | {"sliding_window": 6}),
    "opt": ("opt", _OPT),
    "opt, norm after": ("opt", _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 12}),
    "phi": ("phi", _WIDE | {"num_key_value_heads": 2, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", _WIDE | {"pad_token_id": 0}),
    "qwen2": ("qwen2", _WIDE | {"num_key_value_heads": 1}),
    "qwen2_moe": ("qwen2_moe", _WIDE | _EXPERTS | {"num_key_value_heads": 1, "shared_expert_intermediate_size": 8}),
    "qwen3": ("qwen3", _GROUPED),
    "qwen3_moe": ("qwen3_moe", _GROUPED | _EXPERTS),
    "smollm3": ("smollm3", _WIDE | {"num_key_value_heads": 1, "pad_token_id": 0}),
    "stablelm": ("stablelm", _WIDE | {"num_key_value_heads": 2, "partial_rotary_factor": 0.5}),
    "stablelm, parallel": ("stablelm", _WIDE | {"num_key_value_heads": 2, "use_parallel_residual": True}),
    "starcoder2": ("starcoder2", _WIDE | {"num_key_value_heads": 1}),
}  # fmt: skip


def tiny_base(
    family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A base whose parameters are all random, norms and biases too, in evaluation mode."""
    architecture, settings = FAMILIES[family]
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = AutoConfig.for_model(architecture, **(special | settings | {"vocab_size": VOCABULARY} | changes))
    torch.manual_seed(seed)
    # The faster products of a mixture of experts take neither float64 nor any width.
    experts = (
        {"experts_implementation": "eager"} if "num_experts_per_tok" in settings or architecture == "mixtral" else {}
    )
    base = AutoModelForCausalLM.from_config(config, dtype=dtype, **experts)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    return base.eval()


def encoder_size(**changes: Any) -> SizeConfig:
    """A narrow encoder; the decoder's sizes are not looked at."""
    values: dict[str, Any] = {
        "name": "encoder", "width": 1, "ffw_width": 1, "heads": 1, "head_size": 1, "layers": 1, "cca_layers": [],
        "encoder_width": 8, "encoder_ffw_width": 10, "encoder_heads": 2, "encoder_head_size": 4, "encoder_layers": 2,
    }  # fmt: skip
    return SizeConfig(**(values | changes))


def retrofitted(
    base: PreTrainedModel, cca_layers: list[int] | None = None, frozen: bool = True, opened: bool = False, **model: Any
) -> RetrofittedModel:
    """RETROfit a tiny base; `opened` gives the last products of CCA random weights, so that neighbors matter."""
    torch.manual_seed(1)
    choices = ModelConfig(**({"chunk_length": M, "init_std": 0.3} | model))
    built = RetrofittedModel(base, encoder_size(), choices, cca_layers or [2, 3], frozen=frozen)
    if opened:
        with torch.no_grad():
            for name, parameter in built.cca.named_parameters():
                if name.endswith("output.weight"):
                    parameter.normal_(0, 0.3)
    return built


def random_tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    """Token ids of the tiny vocabulary."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
