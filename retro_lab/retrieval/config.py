"""What is retrieved, from what, and how it is found: `retrieval`, `database`, `embedder`, `index` groups."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass(kw_only=True)
class RetrievalConfig:
    """What a chunk retrieves."""

    k: int = 2
    """Neighbors of each chunk while training. 0 trains the baseline transformer, which has no retrieval weights."""
    value: str = "neighbor_and_continuation"
    """What a neighbor brings: `neighbor_and_continuation` ([N, F] of the paper), `neighbor` or `continuation`."""
    stored: int = 16
    """Neighbors found and stored for each chunk, so that any k up to this needs no new search."""


@dataclass(kw_only=True)
class DatabaseConfig:
    """Which documents of the training split can be retrieved."""

    fraction: float = 1.0
    """Share of the training split's chunks in the database, whole documents."""
    tokens: float | None = None
    """Size of the database in tokens; takes the place of `fraction` where given."""
    fractions: list[float] = field(default_factory=lambda: [1.0])
    """Shares that will be asked for: the database is cut into shards there, so that each needs no new search."""


@dataclass(kw_only=True)
class EmbedderConfig:
    """The frozen BERT whose mean-pooled last layer embeds each chunk."""

    model: str = MISSING
    """Name on the Hugging Face hub, a folder, or `package:NAME/FOLDER` for weights carried by a Python package."""
    revision: str | None = None
    """Commit or tag on the hub."""
    max_length: int = 256
    """Longest input in the embedder's own tokens; what is over is cut off."""
    batch_size: int = 64
    """Chunks embedded at once; a GPU is quicker with more."""
    precision: str = "auto"
    """`float32`, `bfloat16`, or `auto`: bfloat16 where the hardware multiplies it natively."""
    compile: bool = False
    """Compile the encoder with torch.compile: 6% faster on a processor, after 40 seconds. Needs g++."""
    shard_size: int = 4096
    """Chunks in one embedding shard, the unit of work that a killed build never repeats."""


@dataclass(kw_only=True)
class IndexConfig:
    """The nearest-neighbor index over chunk embeddings (squared L2, as in the paper)."""

    factory: str = "auto"
    """FAISS factory string, or `auto`: exact up to `exact_below` vectors, inverted lists above."""
    exact_below: int = 200_000
    """Largest number of vectors that `auto` searches exactly."""
    nprobe: int = 64
    """Inverted lists visited by each query, for indexes that have them."""
    query_batch: int = 4096
    """Queries searched at once."""
