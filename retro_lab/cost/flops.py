"""The floating-point operations of RETRO, computed from its shapes alone.

Only matrix products are counted, a multiplication and an addition as two operations. Norms, softmax, non-linearities
and sinusoids add few more. There are two ways to count a forward pass:

    required    the operations that the architecture of Borgeaud et al. 2022 needs: each visible logit, once. Use it to
                compare models and for model FLOPs utilization (MFU).
    executed    the operations that this implementation performs. Use it to compare with a counter or a device's peak.

`executed` is larger for four reasons. Tiles on the diagonal of causal attention are computed whole. A tile has a
position logit for each of its distances rather than for each of its keys. CCA has queries for the positions that pad
its last chunk. R projects all distances once for a batch, which belongs to no single sequence. It still counts only the
forward pass: the backward pass of `relative_attention` also recomputes the logits of each tile. Including that, a
training step at the sizes of Table 2, with two sequences of 2,048 tokens at a time, executes 4 to 6% more than
required.

Rotary positions have neither position logits nor R. Their causal attention is one fused kernel. It counts as a full
matrix, as in torch's counter, although the kernel skips most of the future.

A pretrained decoder (`backbone=hf`) has blocks of other shapes: fewer keys than queries, or gated feed-forward
networks. It is counted by its own matrices, which each token is multiplied with once, and by its logits. All experts of
a mixture count, also those that a token does not use.

Shapes: B batch, N sequence length, M chunk length, K neighbors of a chunk, R neighbor tokens.
"""

from dataclasses import asdict, dataclass, replace

from retro_lab.errors import ConfigurationError
from retro_lab.model.config import Matrices, ModelConfig, SizeConfig
from retro_lab.model.distances import TRANSFORMER_XL
from retro_lab.model.kernels.relative_attention import BLOCK
from retro_lab.model.validation import check_model

TRAINING_TO_FORWARD = 3
"""Forward and backward pass over forward pass: each product has two gradients, each a product of the same size.

This holds for the architecture with all weights trained. The frozen weights of RETROfit need one gradient less.
Recomputation by an implementation (tiles, checkpointed activations) is not part of model FLOPs.
"""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by part."""

    self_attention: float
    """ATTN of all decoder layers."""
    feed_forward: float
    """FFW of all decoder layers."""
    chunked_cross_attention: float
    """CCA of the layers in P, including keys and values of the encoded neighbors."""
    encoder: float
    """The neighbor encoder, for all neighbors of all chunks."""
    readout: float
    """READ: the logits of all tokens."""

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Return the operations of each part by name."""
        return asdict(self)

    def times(self, factor: float) -> "Flops":
        """Multiply each part: by `TRAINING_TO_FORWARD`, or by 1 / N for the mean token of a sequence."""
        return Flops(**{part: flops * factor for part, flops in self.parts().items()})


def required_flops(
    size: SizeConfig,
    model: ModelConfig,
    vocabulary_size: int,
    *,
    sequence_length: int,
    k: int = 0,
    neighbor_length: int = 0,
    base: Matrices | None = None,
) -> Flops:
    """Count the forward pass of one sequence as the architecture requires it.

    A token of the decoder sees itself and the past, which is half of all pairs. The neighbors of a chunk share position
    logits (Borgeaud et al. 2022, appendix B.1.2) and the keys and values of H_u. The first M - 1 tokens have no chunked
    cross-attention (Listing 1).

    Args:
        size: widths, heads, layers, P and P_enc.
        model: chunk length, positions, and the switches of the ablations.
        vocabulary_size: logits of each token.
        sequence_length: N.
        k: K; 0 is the baseline, or RETRO[Off].
        neighbor_length: R, 2M for [N, F]. Every neighbor counts as full.
        base: of a pretrained decoder; None for the paper's.

    Returns:
        Operations of one sequence.

    Raises:
        ConfigurationError: a value, or a combination of values, that cannot work.
    """
    learned = model.positions == TRANSFORMER_XL
    batch = _Batch(1, sequence_length, model.chunk_length, k, neighbor_length, executed=False, learned=learned)
    counted = _count(size, model, vocabulary_size, batch)
    if base is None:
        return counted
    pairs = batch.causal_logits()[0]
    return replace(
        counted,
        self_attention=2 * batch.n * base.attention + size.layers * 4 * size.heads * size.head_size * pairs,
        feed_forward=2 * batch.n * base.feed_forward,
    )


def executed_flops(
    size: SizeConfig,
    model: ModelConfig,
    vocabulary_size: int,
    *,
    sequences: int,
    sequence_length: int,
    k: int = 0,
    neighbor_length: int = 0,
) -> Flops:
    """Count the forward pass of a batch exactly as `RetroModel` executes it.

    Args:
        size: as in `required_flops`.
        model: as in `required_flops`.
        vocabulary_size: as in `required_flops`.
        sequences: B.
        sequence_length: as in `required_flops`.
        k: as in `required_flops`.
        neighbor_length: as in `required_flops`, of the padded tensor.

    Returns:
        Operations of the whole batch.

    Raises:
        ConfigurationError: a value, or a combination of values, that cannot work.
    """
    learned = model.positions == TRANSFORMER_XL
    batch = _Batch(sequences, sequence_length, model.chunk_length, k, neighbor_length, executed=True, learned=learned)
    return _count(size, model, vocabulary_size, batch)


def device_hours(flops: float, peak_tflops: float, utilization: float) -> float:
    """Return the hours that one device takes.

    Args:
        flops: Operations.
        peak_tflops: The device's peak rate, in 10^12 operations a second.
        utilization: Share of the peak that is reached, from 0 to 1.
    """
    return flops / (peak_tflops * 1e12 * utilization) / 3600


@dataclass(frozen=True)
class _Batch:
    """Shape of a batch, and which of the two counts is wanted."""

    b: int
    n: int
    m: int
    k: int
    r: int
    executed: bool
    learned: bool  # whether positions have logits of their own

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return self.b * self.n

    @property
    def chunks(self) -> int:
        """Complete chunks of all sequences."""
        return self.b * (self.n // self.m)

    @property
    def neighbor_tokens(self) -> int:
        """Tokens of all neighbors of all chunks."""
        return self.chunks * self.k * self.r

    def causal_logits(self) -> tuple[int, int]:
        """Count causal attention's logits over all sequences: between tokens, and between token and distance."""
        if not self.executed:
            pairs = self.b * self.n * (self.n + 1) // 2
            return pairs, pairs * self.learned
        if not self.learned:
            return self.b * self.n * self.n, 0
        tiles = [(start, min(start + BLOCK, self.n)) for start in range(0, self.n, BLOCK)]
        # Queries from start to end see keys up to end, so `end` distances and the filler of `descending_distances`.
        by_key = sum((end - start) * end for start, end in tiles)
        by_distance = sum((end - start) * (end + 1) for start, end in tiles)
        return self.b * by_key, self.b * by_distance

    def position_logits(self, tokens: int, queries: int, keys: int) -> int:
        """Count the logits between token and distance of `tokens` queries, in blocks of `queries` that see `keys`."""
        return tokens * (queries + keys if self.executed else keys) * self.learned

    def distances(self, queries: int, keys: int) -> int:
        """Count the distances between blocks of `queries` and `keys` that R projects for the batch."""
        return queries + keys if self.executed and self.learned else 0


def _attention(
    inner: int,
    *,
    queries: int,
    width: int,
    keys: int,
    context_width: int,
    pairs: int,
    position_logits: int,
    distances: int,
) -> int:
    """Count the attention of one layer.

    Args:
        inner: heads x head size.
        queries: tokens that have a query and an output.
        width: width of their stream.
        keys: tokens that have a key and a value.
        context_width: width of their stream.
        pairs: logits of one head between tokens; as many weights are multiplied with values.
        position_logits: logits of one head between token and distance.
        distances: distances that R projects.
    """
    projected = (2 * queries + distances) * width + 2 * keys * context_width
    return 2 * inner * (projected + 2 * pairs + position_logits)


def _count(size: SizeConfig, model: ModelConfig, vocabulary_size: int, batch: _Batch) -> Flops:
    _check(size, model, vocabulary_size, batch)
    pairs, position_logits = batch.causal_logits()
    attention = _attention(
        size.heads * size.head_size,
        queries=batch.tokens,
        width=size.width,
        keys=batch.tokens,
        context_width=size.width,
        pairs=pairs,
        position_logits=position_logits,
        distances=batch.distances(batch.n, 1),
    )
    return Flops(
        self_attention=size.layers * attention,
        feed_forward=size.layers * 4 * batch.tokens * size.width * size.ffw_width,
        chunked_cross_attention=_chunked_cross_attention(size, model, batch) if batch.neighbor_tokens else 0,
        encoder=_encoder(size, model, batch) if batch.neighbor_tokens else 0,
        readout=2 * batch.tokens * size.width * vocabulary_size,
    )


def _chunked_cross_attention(size: SizeConfig, model: ModelConfig, batch: _Batch) -> int:
    m, k, r = batch.m, batch.k, batch.r
    attending = batch.chunks * m if batch.executed else batch.b * (batch.n - m + 1)
    return len(size.cca_layers) * _attention(
        size.heads * size.head_size,
        queries=attending,
        width=size.width,
        keys=batch.neighbor_tokens,
        context_width=size.encoder_width,
        pairs=attending * k * r,
        position_logits=batch.position_logits(attending, m, r) * model.cca_positions,
        distances=batch.distances(m, r) * model.cca_positions,
    )


def _encoder(size: SizeConfig, model: ModelConfig, batch: _Batch) -> int:
    m, r, tokens = batch.m, batch.r, batch.neighbor_tokens
    width, inner = size.encoder_width, size.encoder_heads * size.encoder_head_size
    self_attention = _attention(
        inner,
        queries=tokens,
        width=width,
        keys=tokens,
        context_width=width,
        pairs=tokens * r,
        position_logits=batch.position_logits(tokens, r, r),
        distances=batch.distances(r, r),
    )
    cross_attention = _attention(
        inner,
        queries=tokens,
        width=width,
        keys=batch.chunks * m,
        context_width=size.width,
        pairs=tokens * m,
        position_logits=batch.position_logits(tokens, r, m),
        distances=batch.distances(r, m),
    )
    feed_forward = 4 * tokens * width * size.encoder_ffw_width
    conditioned = len(size.encoder_ca_layers) if model.query_conditioning else 0
    return size.encoder_layers * (self_attention + feed_forward) + conditioned * cross_attention


def _check(size: SizeConfig, model: ModelConfig, vocabulary_size: int, batch: _Batch) -> None:
    check_model(size, model, vocabulary_size)
    least = {"number of sequences": (batch.b, 1), "sequence length": (batch.n, 1), "number of neighbors": (batch.k, 0)}
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ConfigurationError(f"The {name} must be at least {smallest}, not {value}.")
    if batch.k and not size.cca_layers:
        raise ConfigurationError(
            f"{batch.k} neighbors for each chunk need layers that attend to them, but size.cca_layers is empty; set "
            "retrieval.k=0 for the baseline."
        )
    if batch.k and batch.r < 1:
        raise ConfigurationError(f"Neighbors must have at least 1 token, not {batch.r}.")
