"""The parameters of a model, counted on the meta device."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.retro import RetroModel


class Weight(NamedTuple):
    """A parameter, as FSDP divides it: by rows."""

    rows: int
    """Its first dimension; 1 for a scalar."""
    row: int
    """Numbers in each row."""
    block: int | None
    """Number of the residual block that it belongs to, which FSDP gathers at a time; None outside of blocks."""
    retrieval: bool
    """Whether RETROfit trains it."""


@dataclass(frozen=True)
class Parameters:
    """Parameters of one model."""

    parts: Mapping[str, int]
    """By part, from `RetroModel.parameter_counts`."""
    retrieval: int
    """Those that RETROfit trains."""
    weights: tuple[Weight, ...]
    """Each parameter; one that has two names is there once."""

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
            return cls.of_model(RetroModel(size, model, vocabulary_size))

    @classmethod
    def of_model(cls, network: LanguageModel) -> "Parameters":
        """Count the parameters of a model, which may be on the meta device."""
        retrieval = {parameter: parameter.numel() for _, parameter in network.retrieval_parameters()}
        block_of = {
            parameter: number for number, block in enumerate(network.blocks()) for parameter in block.parameters()
        }
        return cls(
            parts=network.parameter_counts(),
            retrieval=sum(retrieval.values()),
            weights=tuple(
                Weight(
                    rows=parameter.shape[0] if parameter.ndim else 1,
                    row=parameter[0].numel() if parameter.ndim else 1,
                    block=block_of.get(parameter),
                    retrieval=parameter in retrieval,
                )
                for parameter in network.parameters()
            ),
        )

    @property
    def total(self) -> int:
        """All parameters."""
        return self.parts["total"]

    def trained(self, *, frozen: bool) -> int:
        """Return how many are trained: only those for retrieval in RETROfit, else all."""
        return self.retrieval if frozen else self.total

    def largest_share(self, devices: int, *, frozen: bool = False) -> int:
        """Return how many of the trained parameters FSDP leaves with the device that holds most of them.

        Each parameter is cut into as many equal blocks of rows as there are devices, rounded up.
        """
        return sum(-(-weight.rows // devices) * weight.row for weight in self._trained(frozen))

    def outside_blocks(self, *, frozen: bool = False) -> int:
        """Return how many of the trained parameters belong to no block, such as the embeddings."""
        return sum(weight.rows * weight.row for weight in self._trained(frozen) if weight.block is None)

    @property
    def largest_block(self) -> int:
        """Parameters of the largest residual block."""
        blocks: Counter[int] = Counter()
        for weight in self.weights:
            if weight.block is not None:
                blocks[weight.block] += weight.rows * weight.row
        return max(blocks.values(), default=0)

    def _trained(self, frozen: bool) -> list[Weight]:
        return [weight for weight in self.weights if weight.retrieval or not frozen]
