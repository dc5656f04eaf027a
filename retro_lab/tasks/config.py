"""The whole configuration, typed, and what a command does: the `task` group.

The command line composes it (`retro_lab.config`) and hands it to the `run(config, folder)` of a task.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from retro_lab.corpus.config import CorpusConfig, DecontaminationConfig, TokenizerConfig
from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.config import EvaluationConfig, check_stride
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.ranges import POSITIVE, SEED, SHARE, check_ranges
from retro_lab.retrieval.config import DatabaseConfig, EmbedderConfig, IndexConfig, RetrievalConfig, check_length
from retro_lab.training.config import ComputeConfig, DataConfig, InitConfig, OptimizerConfig, ScheduleConfig


class Task(StrEnum):
    """What a command does: the module of this name in `retro_lab.tasks`."""

    build = "build"
    compare = "compare"
    evaluate = "evaluate"
    inspect = "inspect"
    plan = "plan"
    report = "report"
    train = "train"
    verify = "verify"

    @property
    def trains(self) -> bool:
        """Whether it trains models."""
        return self in (Task.compare, Task.train)

    @property
    def has_run_folder(self) -> bool:
        """Whether it works on a run folder, and not on the artifact store or the screen alone."""
        return self not in (Task.build, Task.inspect, Task.plan, Task.verify)

    @property
    def once_per_sweep(self) -> bool:
        """Whether it is done once for a sweep, in its folder, and not for every cell."""
        return self is Task.report


class InspectedSplit(StrEnum):
    """Where chunks that are shown are taken from."""

    train = "train"
    validation = "validation"
    test = "test"


@dataclass(kw_only=True)
class TaskConfig:
    """A task by name."""

    name: Task
    """What the command does."""


@dataclass(kw_only=True)
class InspectConfig(TaskConfig):
    """Show chunks of a split beside their neighbors."""

    name: Task = Task.inspect
    split: InspectedSplit = InspectedSplit.validation
    """Split that the chunks are taken from."""
    chunk: int | None = None
    """Id of the chunk to show; null shows `count` chunks, evenly spaced."""
    count: int = 3
    """Number of chunks to show."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges("task", self, count=POSITIVE)


@dataclass(kw_only=True)
class PlanConfig(TaskConfig):
    """What a build and a training run would take, from arithmetic alone."""

    name: Task = Task.plan
    embedding_chunks_per_second: float = 1728
    """Chunks embedded each second on one device. Default: BERT-large on an A100 (Wang et al. 2024)."""
    peak_tflops: float = 989
    """Peak rate of one training device in the training precision. Default: H100, bfloat16, dense."""
    utilization: float = 0.4
    """Share of the peak rate that training reaches."""
    embedding_width: int = 768
    """Width of a chunk's embedding. Default: BERT-base."""
    queries_per_second: float = 250
    """Chunks searched each second by one CPU core in one index. Default: 4 ms each, as Wang et al. 2024 report."""
    tokens_per_document: float = 983
    """Mean length of a document. Default: the paper's evaluation database (Table 8, books at 4%)."""
    index_memory: float = 1e12
    """Bytes of memory for one index: the database is cut into shards whose indexes fit."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(
            "task",
            self,
            embedding_chunks_per_second=POSITIVE,
            peak_tflops=POSITIVE,
            utilization=SHARE,
            embedding_width=POSITIVE,
            queries_per_second=POSITIVE,
            tokens_per_document=POSITIVE,
            index_memory=POSITIVE,
        )


@dataclass(kw_only=True)
class PathsConfig:
    """Folders."""

    artifacts: str
    """Folder of what the data pipeline builds, shared by all runs; RETRO_LAB_ARTIFACTS in the environment sets it."""
    outputs: str
    """Folder that holds a folder for each run; RETRO_LAB_OUTPUTS in the environment sets it."""


@dataclass(kw_only=True)
class RunConfig:
    """Everything a run is configured by."""

    task: TaskConfig
    size: SizeConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    corpus: CorpusConfig
    corpus_name: str
    """Name of the corpus in tables; by default that of its option."""
    corpora: dict[str, CorpusConfig] = field(default_factory=dict)
    """Other corpora by name, to retrieve from (`database.corpus`) or to score (`evaluation.datasets`). Options of
    `corpus` need no entry here; add files of your own as `+corpus@corpora.NAME=local corpora.NAME.path=FILE`."""
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    tokenizer: TokenizerConfig
    embedder: EmbedderConfig
    index: IndexConfig = field(default_factory=IndexConfig)
    data: DataConfig = field(default_factory=DataConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    paths: PathsConfig
    # No schema for these three: Lightning checks them itself, and users add entries of their own by name.
    trainer: dict[str, Any]
    """Arguments of Lightning's Trainer."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning's callbacks: each has a name and the class to make."""
    logger: dict[str, Any] = field(default_factory=dict)
    """Lightning's loggers: each has a name and the class to make."""
    seed: int = 0
    """Seed of weights, dropout and batch order. `database.seed` orders documents, so that models of all seeds share
    them."""
    name: str | None = None
    """Name of the run folder, or of the sweep's; null makes it from the experiment and the overrides."""

    def __post_init__(self) -> None:
        """Check the seed, and the lengths that have to fit together.

        Raises:
            ConfigurationError: The seed is out of range, or lengths are not whole chunks or leave gaps.
        """
        check_ranges("", self, seed=SEED)
        chunk_length, length = self.model.chunk_length, self.data.sequence_length
        if chunk_length < 1:
            raise ConfigurationError(f"model.chunk_length must be a positive whole number, not {chunk_length}.")
        check_length(length, chunk_length)
        if self.task.name in (Task.compare, Task.evaluate, Task.train):
            check_stride(self.evaluation.stride, chunk_length, length)
