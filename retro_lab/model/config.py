"""Shapes and choices of the model: the `size` and `model` configuration groups.

`SizeConfig` has the settings that vary in Tables 2 and 10 of Borgeaud et al. 2022. `ModelConfig` has everything else
that defines the network, including the switches of the ablations in Table 13.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class Positions(StrEnum):
    """How attention encodes the distance between a query and a key."""

    transformer_xl = "transformer_xl"
    rotary = "rotary"


class Activation(StrEnum):
    """Non-linearity of the feed-forward blocks."""

    gelu = "gelu"
    relu = "relu"


@dataclass(kw_only=True)
class SizeConfig:
    """One row of the size table (Borgeaud et al. 2022, Tables 2 and 10)."""

    name: str
    """Name of the size, as in `size=NAME`."""
    width: int
    """Hidden width d of the decoder."""
    ffw_width: int
    """Inner width of the decoder's feed-forward blocks (4d in the paper)."""
    heads: int
    """Attention heads of the decoder."""
    head_size: int
    """Width of one decoder head; heads x head_size need not equal `width` (1,024 against 896 in the smallest model)."""
    layers: int
    """Decoder layers L."""
    cca_layers: list[int]
    """Decoder layers with chunked cross-attention, counted from 1: the paper's P (every third layer from 6)."""
    encoder_width: int = 896
    """Hidden width d' of the neighbor encoder."""
    encoder_ffw_width: int = 3584
    """Inner width of the encoder's feed-forward blocks."""
    encoder_heads: int = 16
    """Attention heads of the encoder."""
    encoder_head_size: int = 64
    """Width of one encoder head."""
    encoder_layers: int = 2
    """Encoder layers L_enc."""
    encoder_ca_layers: list[int] = field(default_factory=lambda: [1])
    """Encoder layers that cross-attend to the decoder's chunk H_u, counted from 1: the paper's P_enc."""


@dataclass(kw_only=True)
class ModelConfig:
    """Architecture choices that do not depend on the size."""

    chunk_length: int = 64
    """Tokens in a chunk: the paper's m. A retrieved neighbor is a chunk and its continuation, 2m tokens."""
    query_conditioning: bool = True
    """Let the encoder cross-attend to the decoder's activations H_u (Table 13: 'No query conditioning')."""
    cca_positions: bool = True
    """Relative positions in chunked cross-attention (Table 13: 'No CA positional encodings')."""
    positions: Positions = Positions.transformer_xl
    """How every attention encodes relative positions: `transformer_xl`, as in the paper, or `rotary`. Rotary positions
    have no parameters, run on fused kernels, and are needed to RETROfit a rotary model. The paper's parameter counts
    need `transformer_xl`."""
    rotary_base: float = 10_000.0
    """For rotary positions: the lowest frequency is almost 1 / base. 10,000 in Su et al. 2021."""
    document_masks: bool = False
    """Keep attention and neighbors within a document where several documents share a sequence. The paper does not
    mention such masks; without them, a document also attends to those that happen to precede it."""
    shared_embeddings: bool = False
    """Use one embedding table for decoder and encoder (Table 13: 'Shared embeddings')."""
    tied_readout: bool = True
    """Compute logits with the decoder's embedding table. Not stated in the paper, which counts embeddings once."""
    activation: Activation = Activation.gelu
    """Non-linearity of the feed-forward blocks, `gelu` or `relu`. Not stated in the paper."""
    norm_eps: float = 1e-6
    """Epsilon of RMSNorm. Not stated in the paper. Norms come before each block (pre-norm), also not stated."""
    dropout: float = 0.0
    """Dropout on the output of every block in training. Not stated for MassiveText; 0.25 on WikiText-103."""
    init_std: float = 0.02
    """Standard deviation of the initial weights. Not stated in the paper."""


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """Entries of the matrices that each token is multiplied with in all layers of a pretrained decoder."""

    attention: int
    """Of queries, keys, values and outputs."""
    feed_forward: int
    """Of everything else."""
