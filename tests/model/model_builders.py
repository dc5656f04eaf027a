"""Small models and random inputs for the tests of this folder."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel

VOCABULARY = 23


def small_size(**changes: Any) -> SizeConfig:
    """A decoder of 3 layers with P = [2, 3] and a narrower encoder; heads x head size differs from the width."""
    values: dict[str, Any] = {
        "name": "small",
        "width": 8,
        "ffw_width": 12,
        "heads": 2,
        "head_size": 6,
        "layers": 3,
        "cca_layers": [2, 3],
        "encoder_width": 6,
        "encoder_ffw_width": 10,
        "encoder_heads": 2,
        "encoder_head_size": 4,
        "encoder_layers": 2,
        "encoder_ca_layers": [1],
    }
    return SizeConfig(**(values | changes))


def small_choices(**changes: Any) -> ModelConfig:
    """Chunks of 4 tokens and weights large enough for every part to matter."""
    return ModelConfig(**({"chunk_length": 4, "init_std": 0.5} | changes))


def small_model(size: SizeConfig | None = None, model: ModelConfig | None = None, seed: int = 0) -> RetroModel:
    """A float64 model whose parameters are all random, norms and biases too."""
    torch.manual_seed(seed)
    built = RetroModel(size or small_size(), model or small_choices(), VOCABULARY).double()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    return built


def random_tokens(*shape: int, seed: int = 1) -> Tensor:
    """Token ids of the small vocabulary."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


class LargestTensor(TorchDispatchMode):
    """Note the entries of the largest tensor that any operation inside the `with` returns."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at its results."""
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, Tensor):
                self.entries = max(self.entries, result.numel())
        return results
