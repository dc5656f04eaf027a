"""The parameters of a model, counted on the meta device."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from retro_lab.model.blocks import Residual
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel


@dataclass(frozen=True)
class Parameters:
    """Parameters of one model."""

    parts: Mapping[str, int]
    """By part, from `RetroModel.parameter_counts`."""
    retrieval: int
    """Those that RETROfit trains."""
    largest_unit: int
    """Of the largest block or embedding table, which FSDP gathers at a time."""

    @classmethod
    def of(cls, size: SizeConfig, model: ModelConfig, vocabulary_size: int) -> "Parameters":
        """Build the model without its weights, and count.

        Args:
            size: widths, heads, layers, P and P_enc.
            model: the choices that do not depend on the size.
            vocabulary_size: entries of an embedding table.

        Raises:
            ConfigurationError: a value, or a combination of values, that cannot work.
        """
        with torch.device("meta"):
            network = RetroModel(size, model, vocabulary_size)
        units = [unit for unit in network.modules() if isinstance(unit, Residual | torch.nn.Embedding)]
        return cls(
            parts=network.parameter_counts(),
            retrieval=sum(parameter.numel() for _, parameter in network.retrieval_parameters()),
            largest_unit=max(sum(parameter.numel() for parameter in unit.parameters()) for unit in units),
        )

    @property
    def total(self) -> int:
        """All parameters."""
        return self.parts["total"]

    def trained(self, *, retrofit: bool) -> int:
        """Return how many are trained: only those for retrieval in RETROfit, else all."""
        return self.retrieval if retrofit else self.total
