"""What is measured: our training step, that of retro-pytorch, and textbook forms of their parts."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro_lab.cost.flops import TRAINING_TO_FORWARD, required_flops
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel

HEADS, HEAD_SIZE = 8, 64  # retro-pytorch has 8 heads, whatever it is told
CHUNK = 64


@dataclass(frozen=True)
class Shape:
    """Shape of a model and its batch: one decoder in two has chunked cross-attention, the encoder two layers."""

    width: int
    length: int
    k: int = 2
    vocabulary: int = 8192
    batch: int = 1
    layers: int = 2

    @property
    def size(self) -> SizeConfig:
        """The model's widths and layers."""
        return SizeConfig(
            name="benchmark", width=self.width, ffw_width=4 * self.width, heads=HEADS, head_size=HEAD_SIZE,
            layers=self.layers, cca_layers=list(range(2, self.layers + 1, 2)), encoder_width=self.width,
            encoder_ffw_width=4 * self.width, encoder_heads=HEADS, encoder_head_size=HEAD_SIZE, encoder_layers=2,
            encoder_ca_layers=[1],
        )  # fmt: skip

    def training_flops(self, k: int) -> float:
        """FLOPs of a training step, as the architecture requires them."""
        size = self.size if k else replace(self.size, cca_layers=[])
        sequence = required_flops(
            size, ModelConfig(), self.vocabulary, sequence_length=self.length, k=k, neighbor_length=2 * CHUNK
        )
        return TRAINING_TO_FORWARD * self.batch * sequence.total


@dataclass(frozen=True)
class Step:
    """A training step: forward pass with loss, backward pass, optimizer."""

    loss: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    autocast: torch.autocast

    def __call__(self) -> float:
        """Take the step and return the loss."""
        with self.autocast:
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def our_step(
    shape: Shape,
    device: torch.device,
    *,
    k: int | None = None,
    bfloat16: bool = False,
    compiled: bool = False,
    positions: str = "transformer_xl",
) -> Step:
    """Our step, with `k` neighbors or those of the shape; 0 is the baseline."""
    k = shape.k if k is None else k
    torch.manual_seed(0)
    size = shape.size if k else replace(shape.size, cca_layers=[])
    model = RetroModel(size, ModelConfig(shared_embeddings=bool(k), positions=positions), shape.vocabulary).to(device)
    tokens, neighbors, lengths = random_batch(shape, device)
    mask = torch.ones(shape.batch, shape.length, dtype=torch.bool, device=device)
    compute = torch.compile(model.loss, fullgraph=True, dynamic=False) if compiled else model.loss

    def loss() -> Tensor:
        given = (neighbors, lengths) if k else (None, None)
        return compute(tokens[:, :-1], tokens[:, 1:], mask, *given) / mask.sum()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return Step(loss, optimizer, torch.autocast(device.type, torch.bfloat16, enabled=bfloat16))


def peer_model(shape: Shape) -> nn.Module:
    """retro-pytorch at the same widths, depths, layers with cross-attention and vocabulary."""
    from retro_pytorch import RETRO

    torch.manual_seed(0)
    return RETRO(
        num_tokens=shape.vocabulary, max_seq_len=shape.length, chunk_size=CHUNK, heads=HEADS, dim_head=HEAD_SIZE,
        enc_dim=shape.width, enc_depth=2, enc_cross_attn_layers=(1,), dec_dim=shape.width, dec_depth=shape.layers,
        dec_cross_attn_layers=tuple(shape.size.cca_layers),
    )  # fmt: skip


def peer_step(shape: Shape, device: torch.device) -> Step:
    """The step of retro-pytorch with the same k and batch."""
    model = peer_model(shape).to(device)
    tokens, neighbors, _ = random_batch(shape, device)
    return Step(
        lambda: model(tokens, retrieved=neighbors, return_loss=True),
        torch.optim.AdamW(model.parameters(), lr=1e-4),
        torch.autocast(device.type, enabled=False),
    )


def random_batch(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, N + 1], full neighbors [B, L, K, 2M] and their lengths; no token is 0, retro-pytorch's padding."""
    generator = torch.Generator().manual_seed(1)
    chunks = shape.length // CHUNK
    tokens = torch.randint(1, shape.vocabulary, (shape.batch, shape.length + 1), generator=generator)
    neighbors = torch.randint(1, shape.vocabulary, (shape.batch, chunks, shape.k, 2 * CHUNK), generator=generator)
    lengths = torch.full(neighbors.shape[:3], 2 * CHUNK)
    return tokens.to(device), neighbors.to(device), lengths.to(device)


def textbook_relative_attention(
    content_query: Tensor, position_query: Tensor, key: Tensor, value: Tensor, position: Tensor
) -> Tensor:
    """Causal attention as Dai et al. 2019 wrote it: all logits at once, and the shift by padding and reshaping.

    Args:
        content_query: q + u, [H, N, A].
        position_query: q + v, [H, N, A].
        key: [H, N, A].
        value: [H, N, A].
        position: projected sinusoids of the distances N - 1 to 0, [H, N, A].
    """
    content = torch.einsum("hia,hja->hij", content_query, key)
    by_distance = torch.einsum("hia,hda->hid", position_query, position)
    heads, n, _ = by_distance.shape
    shifted = F.pad(by_distance, (1, 0)).reshape(heads, n + 1, n)[:, 1:].reshape(heads, n, n)
    logits = (content + shifted) / math.sqrt(key.shape[-1])
    future = torch.ones(n, n, dtype=torch.bool, device=key.device).triu(1)
    return logits.masked_fill(future, -torch.inf).softmax(-1) @ value


class ByteModel(nn.Module):
    """A small RETRO over bytes of real text, for the losses that precisions lead to."""

    LENGTH = 256

    def __init__(self) -> None:
        """Create the model, the same each time."""
        super().__init__()
        torch.manual_seed(0)
        shape = Shape(width=128, length=self.LENGTH)
        self.model = RetroModel(shape.size, ModelConfig(shared_embeddings=True), 256)
        source = Path(__file__).parents[1] / "retro_lab"
        text = "".join(path.read_text(encoding="utf-8") for path in sorted(source.rglob("*.py")))
        self.text = torch.frombuffer(bytearray(text.encode("utf-8")), dtype=torch.uint8).long()

    def loss(self, step: int) -> Tensor:
        """Mean loss of the `step`-th sequences; each chunk's neighbor is text from elsewhere."""
        starts = torch.randint(len(self.text) - 2 * self.LENGTH, (4,), generator=torch.Generator().manual_seed(step))
        tokens = torch.stack([self.text[start : start + self.LENGTH + 1] for start in starts])
        neighbors = torch.stack([self.text[start : start + 2 * self.LENGTH] for start in starts.flip(0)])
        neighbors = neighbors.view(4, self.LENGTH // CHUNK, 1, 2 * CHUNK)
        mask = torch.ones(4, self.LENGTH, dtype=torch.bool)
        return self.model.loss(tokens[:, :-1], tokens[:, 1:], mask, neighbors) / mask.sum()
