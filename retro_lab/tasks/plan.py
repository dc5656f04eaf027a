"""`task=plan`: what a model, a database and a training run would take, before anything is spent."""

import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from retro_lab import console
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel
from retro_lab.retrieval.index import choose_factory

PAPER_VOCABULARY = 128_000
"""Vocabulary counted with where the tokenizer's is not known before it is made (Borgeaud et al. 2022, Sec. 2.1)."""
TRAINING_FLOPS_PER_WEIGHT = 6
"""Multiplications and additions of forward and backward pass for each weight and token that uses it."""


def run(config: DictConfig) -> None:
    """Print parameters by part, bytes of each artifact, and device hours of embedding and training."""
    size, model = OmegaConf.to_object(config.size), OmegaConf.to_object(config.model)
    assert isinstance(size, SizeConfig)
    assert isinstance(model, ModelConfig)
    vocabulary = int(config.tokenizer.get("vocabulary_size", PAPER_VOCABULARY))
    with torch.device("meta"):
        counts = RetroModel(size, model, vocabulary).parameter_counts()
    _print("Parameters", {f"size={size.name}, vocabulary {vocabulary:,}": "", **_thousands(counts)})
    tokens = float(config.database.tokens or config.schedule.tokens)
    _print(f"Database of {tokens:,.0f} tokens", _database(config, tokens, vocabulary))
    _print(f"Training on {config.schedule.tokens:,.0f} tokens", _training(config, counts))


def _database(config: DictConfig, tokens: float, vocabulary: int) -> dict[str, str]:
    m, width = config.model.chunk_length, config.task.embedding_width
    chunks = -(-int(tokens) // m)
    id_bytes = 2 if vocabulary <= 2**16 else 4
    neighbor_bytes = 8 + 4
    factory = choose_factory(config.index.factory, chunks, width, config.index.exact_below)
    hours = chunks / config.task.embedding_chunks_per_second / 3600
    return {
        "chunks": f"{chunks:,}",
        "tokens": _bytes(tokens * id_bytes),
        f"embeddings (float16, {width} wide)": _bytes(chunks * width * 2),
        "float32 keys and [N, F] values, as the paper stores them": _bytes(chunks * (4 * width + 4 * 2 * m)),
        "index": factory,
        f"neighbors (of as many chunks, {config.retrieval.stored} each)": _bytes(
            chunks * config.retrieval.stored * neighbor_bytes
        ),
        "device hours to embed": f"{hours:,.1f} at {config.task.embedding_chunks_per_second:,.0f} chunks/s",
    }


def _training(config: DictConfig, counts: dict[str, int]) -> dict[str, str]:
    """Count weights times tokens; each token brings k r / m neighbor tokens through the encoder.

    Attention's own products are left out: a few percent at the paper's lengths.
    """
    m, k = config.model.chunk_length, config.retrieval.k
    values = 2 * m if config.retrieval.value == "neighbor_and_continuation" else m
    per_token = TRAINING_FLOPS_PER_WEIGHT * (
        counts["decoder"]
        + counts["chunked_cross_attention"]
        + counts["embeddings"]
        + counts["encoder"] * k * values / m
    )
    flops = per_token * config.schedule.tokens
    rate = config.task.peak_tflops * 1e12 * config.task.utilisation
    steps = config.schedule.tokens / (config.data.sequence_length * config.data.batch_size)
    return {
        "steps": f"{steps:,.0f} of {config.data.batch_size} x {config.data.sequence_length} tokens",
        "FLOPs per token": f"{per_token:.3g}",
        "FLOPs": f"{flops:.3g}",
        "device hours": f"{flops / rate / 3600:,.1f} at {config.task.utilisation:.0%} of "
        f"{config.task.peak_tflops:,.0f} TFLOP/s",
        "weights, gradients and AdamW moments (float32)": _bytes(counts["total"] * 16),
    }


def _thousands(counts: dict[str, int]) -> dict[str, str]:
    return {name.replace("_", " "): f"{count:,}" for name, count in counts.items()}


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"


def _print(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    console.output.print(table)
