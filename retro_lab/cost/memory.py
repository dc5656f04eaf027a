"""The memory of a training step on each device, computed from shapes alone: its state and its activations.

The state is weights, gradients and the moments of AdamW, all in the precision of the weights. DDP copies it to each
device; FSDP divides it (`retro_lab.model.sharding`): each parameter by rows, and to compute, a device gathers one
residual block after another, and keeps everything outside of blocks gathered. Activations are the tensors kept from the
forward to the backward pass.

For each token, with `stream` bytes for an entry of the residual stream and `product` bytes for a factor of a matrix
product (4 and 4 in float32, 4 and 2 under autocast to half precision), a block keeps

    its norm            D (stream + product)        input, result
    self-attention      4 I product                 q, k, v, result
    cross-attention     2 I product                 q, result
                        2 I product                 k and v of each key token; under autocast also its state
    feed-forward        F product                   the inner layer before its non-linearity

With rotary positions, q and k are kept both unrotated and rotated, and the result both before and after heads merge:
7 I product for self-attention, and 3 I in place of both 2 I for cross-attention.

Attention never keeps weights or logits (`relative_attention`), and the loss keeps gradients in place of logits
(`cross_entropy`). With checkpointing, each block keeps its input (D stream), and one block at a time keeps all of the
above.

This is an estimate. Token ids, masks, dropout and tensors that depend on distances alone are left out, together a few
percent at most, as are the buffers that an operation holds while it runs.

Shapes: D width, F inner width of the feed-forward network, I heads x head size; B batch, N sequence length, M chunk
length, K neighbors of a chunk, R neighbor tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

from retro_lab.cost.parameters import Parameters
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.distances import ROTARY

ADAMW_MOMENTS = 2
"""Numbers that AdamW keeps for each weight, in the weight's precision."""
FLOAT32 = 4
"""Bytes of a number in which FSDP sums gradients, at least."""


class Precision(NamedTuple):
    """Bytes of a number."""

    stream: int
    """In weights, gradients and the residual stream."""
    product: int
    """In the factors of matrix products."""

    @property
    def casts(self) -> bool:
        """Whether factors of products are cast to another precision."""
        return self.stream != self.product


@dataclass(frozen=True)
class TrainingState:
    """Bytes that one device holds from step to step, and the copies it makes of them."""

    weights: float
    gradients: float
    moments: float
    """Of AdamW."""
    copies: float
    """Needed while a step is computed."""

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.weights + self.gradients + self.moments + self.copies


def replicated_state(
    parameters: Parameters, precision: Precision, *, frozen: bool = False, devices: int = 1
) -> TrainingState:
    """Count the state of each device under DDP, which copies everything to each, or of a single device.

    Args:
        parameters: of the model.
        precision: of weights and products.
        frozen: whether only the retrieval weights are trained.
        devices: of all nodes.

    Returns:
        Bytes of one device. Copies are autocast's casts of weights, and DDP's gradient buckets.
    """
    trained = parameters.trained(frozen=frozen) * precision.stream
    casts = parameters.parts["non_embedding"] * precision.product if precision.casts else 0
    return TrainingState(
        weights=parameters.total * precision.stream,
        gradients=trained,
        moments=ADAMW_MOMENTS * trained,
        copies=casts + (trained if devices > 1 else 0),
    )


def sharded_state(
    parameters: Parameters, precision: Precision, *, frozen: bool = False, devices: int = 1
) -> TrainingState:
    """Count the state of each device under FSDP, which divides everything between devices.

    Args:
        parameters: as in `replicated_state`.
        precision: as in `replicated_state`.
        frozen: as in `replicated_state`.
        devices: as in `replicated_state`.

    Returns:
        Bytes of the device that holds most. Copies are what lies outside of blocks, gathered, with its whole gradient;
        and of the largest block the weights, those of the next one, the gradient, and its sum over devices. If it is
        larger, the sum of the gradient outside of blocks takes the place of all that is of blocks, because it is last.
    """
    trained = parameters.largest_share(devices, frozen=frozen) * precision.stream
    outside, trained_outside = parameters.outside_blocks(), parameters.outside_blocks(frozen=frozen)
    summed = max(precision.stream, FLOAT32)
    in_blocks = parameters.largest_block * (3 * precision.product + summed)
    return TrainingState(
        weights=parameters.largest_share(devices) * precision.stream,
        gradients=trained,
        moments=ADAMW_MOMENTS * trained,
        copies=(outside + trained_outside) * precision.stream + max(in_blocks, trained_outside * summed),
    )


def least_bytes(
    parameters: Parameters,
    size: SizeConfig,
    model: ModelConfig,
    precision: Precision,
    *,
    sequences: int,
    sequence_length: int,
    k: int = 0,
    neighbor_length: int = 0,
    checkpointing: bool = False,
    frozen: bool = False,
    moments: bool = True,
    devices: int = 1,
    sharded: bool = False,
) -> tuple[int, int]:
    """Count a lower bound on a device's memory: with less it cannot train; with more it still may not fit.

    Args:
        parameters: of the model.
        size: as in `activation_bytes`.
        model: as in `activation_bytes`.
        precision: as in `activation_bytes`.
        sequences: as in `activation_bytes`.
        sequence_length: as in `activation_bytes`.
        k: as in `activation_bytes`.
        neighbor_length: as in `activation_bytes`.
        checkpointing: as in `activation_bytes`.
        frozen: whether only the retrieval weights are trained.
        moments: whether AdamW is the optimizer.
        devices: of all nodes.
        sharded: whether they divide the state, as in `sharded_state`.

    Returns:
        Bytes held throughout training (weights and moments), and the larger of the bytes added while the loss is
        computed (activations) and while weights are updated (gradients); copies are left out.
    """
    state = (sharded_state if sharded else replicated_state)(parameters, precision, frozen=frozen, devices=devices)

    def activations(k: int) -> int:
        return activation_bytes(
            size,
            model,
            1,
            precision,
            sequences=sequences,
            sequence_length=sequence_length,
            k=k,
            neighbor_length=neighbor_length,
            checkpointing=checkpointing,
        )

    kept = activations(k)
    if frozen:  # frozen layers below the first chunked cross-attention keep nothing
        kept = max(0, kept - activations(0))
    return int(state.weights + moments * state.moments), max(kept, int(state.gradients))


def activation_bytes(
    size: SizeConfig,
    model: ModelConfig,
    vocabulary_size: int,
    precision: Precision,
    *,
    sequences: int,
    sequence_length: int,
    k: int = 0,
    neighbor_length: int = 0,
    checkpointing: bool = False,
) -> int:
    """Estimate the bytes kept for the backward pass of one batch.

    Args:
        size: widths, heads, layers, P and P_enc.
        model: chunk length, positions, and the switches of the ablations.
        vocabulary_size: V.
        precision: of stream and products.
        sequences: B.
        sequence_length: N.
        k: K; 0 is the baseline, or RETRO[Off].
        neighbor_length: R, 2M for [N, F].
        checkpointing: whether blocks are checkpointed, each `Branch` by itself.

    Returns:
        Bytes, without weights and their copies.
    """
    stream, product = precision
    tokens, chunks = sequences * sequence_length, sequences * (sequence_length // model.chunk_length)
    chunk_tokens, neighbor_tokens = chunks * model.chunk_length, chunks * k * neighbor_length
    width, inner = size.width, size.heads * size.head_size
    encoder_width, encoder_inner = size.encoder_width, size.encoder_heads * size.encoder_head_size

    def norm(block_width: int) -> int:
        return (stream + product) * block_width

    # The last norm, the gradient that the loss keeps for its result, and the one for the read-out.
    others = (2 * tokens + vocabulary_size) * width * stream
    # Each kind of block: its count, bytes of its input, bytes of everything it keeps.
    decoder_input = tokens * width * stream
    rotary = model.positions == ROTARY
    of_self_attention = 7 if rotary else 4
    blocks = [
        (size.layers, decoder_input, tokens * (norm(width) + of_self_attention * inner * product)),
        (size.layers, decoder_input, tokens * (norm(width) + size.ffw_width * product)),
    ]
    if neighbor_tokens and size.cca_layers:
        of_cca, of_conditioning = 3 if rotary and model.cca_positions else 2, 3 if rotary else 2
        context = of_cca * inner * product + precision.casts * encoder_width * product
        cca = tokens * (norm(width) + of_cca * inner * product) + neighbor_tokens * context
        encoder_attention = neighbor_tokens * (norm(encoder_width) + of_self_attention * encoder_inner * product)
        conditioning = neighbor_tokens * (norm(encoder_width) + of_conditioning * encoder_inner * product)
        conditioning += chunk_tokens * (of_conditioning * encoder_inner + precision.casts * width) * product
        feed_forward = neighbor_tokens * (norm(encoder_width) + size.encoder_ffw_width * product)
        encoder_input = neighbor_tokens * encoder_width * stream
        conditioned = len(size.encoder_ca_layers) if model.query_conditioning else 0
        blocks += [
            (len(size.cca_layers), decoder_input, cca),
            (size.encoder_layers, encoder_input, encoder_attention),
            (conditioned, encoder_input, conditioning),
            (size.encoder_layers, encoder_input, feed_forward),
        ]
        # The norms of H_u and of the encoder's result. Their results are kept once for all blocks that read them
        # uncast; a block that casts them keeps its own cast, counted above.
        as_they_are = int(checkpointing or not precision.casts)
        others += (1 + as_they_are) * encoder_input
        others += as_they_are * (conditioned > 0) * chunk_tokens * width * stream
    if checkpointing:
        at_work = max(kept - given for count, given, kept in blocks if count)
        return others + at_work + sum(count * given for count, given, _ in blocks)
    return others + sum(count * kept for count, _, kept in blocks)
