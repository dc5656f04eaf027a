"""What a command does: the `task` group."""

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass(kw_only=True)
class TaskConfig:
    """A task by name; `retro_lab.tasks` says what each does."""

    name: str = MISSING
    """Module in `retro_lab.tasks` whose `run(config)` is called."""


@dataclass(kw_only=True)
class InspectConfig(TaskConfig):
    """Show chunks of a split beside their neighbors."""

    name: str = "inspect"
    split: str = "validation"
    """`validation`, `test` or `train`: where the chunks are taken from."""
    chunk: int | None = None
    """Id of the chunk to show; null shows `count` of them spread evenly."""
    count: int = 3
    """Chunks to show."""


@dataclass(kw_only=True)
class PlanConfig(TaskConfig):
    """What a build and a training run would take, from arithmetic alone."""

    name: str = "plan"
    embedding_chunks_per_second: float = 1728
    """Chunks embedded each second on one device. Default: BERT-large on an A100 (Wang et al. 2024)."""
    peak_tflops: float = 989
    """Peak rate of one training device in the training precision. Default: H100, bfloat16, dense."""
    utilisation: float = 0.4
    """Share of that peak that training reaches."""
    embedding_width: int = 768
    """Width of a chunk's embedding. Default: BERT-base."""
    queries_per_second: float = 250
    """Chunks searched each second by one CPU core in one index. Default: 4 ms each, as Wang et al. 2024 report."""
    tokens_per_document: float = 983
    """Mean length of a document. Default: the paper's evaluation database (Table 8, books at 4%)."""
    index_memory: float = 1e12
    """Bytes of memory for one index: the database is cut into shards whose indexes fit."""
