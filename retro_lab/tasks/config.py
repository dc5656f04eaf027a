"""The whole configuration, typed; `task_config` has the `task` group.

The command line composes it (`retro_lab.config`) and passes it to the `run(config, folder)` of a task.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from retro_lab.artifacts.config import BuildConfig
from retro_lab.corpus.config import (
    CorpusConfig,
    DecontaminationConfig,
    DeduplicationConfig,
    PretrainedTokenizerConfig,
    TokenizerConfig,
)
from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.config import EvaluationConfig, check_stride
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.ranges import NOT_NEGATIVE, POSITIVE, SEED, check_ranges
from retro_lab.retrieval.config import DatabaseConfig, EmbedderConfig, IndexConfig, RetrievalConfig, check_length
from retro_lab.tasks.task_config import Task, TaskConfig
from retro_lab.training.config import (
    Backbone,
    BackboneConfig,
    ComputeConfig,
    DataConfig,
    Init,
    InitConfig,
    OptimizerConfig,
    ScheduleConfig,
)

TIME = r"\d+(-\d+(:\d+){0,2}|(:\d+){1,2})?"
"""How SLURM writes a duration: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes ..."""


@dataclass(kw_only=True)
class ClusterConfig:
    """What a job of `retro-lab submit` asks SLURM for; nodes, processes and GPUs follow from `trainer`."""

    partition: str | None = None
    """Partition; null is the cluster's default."""
    account: str | None = None
    """Account to charge; null is the cluster's default."""
    time: str | None = None
    """Time limit as SLURM writes it, such as 24:00:00 or 2-00:00; null is the partition's. A job that reaches it saves
    its state and is queued again."""
    cpus_per_task: int = 8
    """Processor cores of each process."""
    mem: str | None = None
    """Memory of each node, such as 64G; null is the cluster's default."""
    options: list[str] = field(default_factory=list)
    """Other options of sbatch, each as one text, such as --qos=high or --constraint=h100."""
    setup: list[str] = field(default_factory=list)
    """Shell commands that a job runs before it starts the processes, such as module load cuda."""
    signal_seconds: int = 120
    """Seconds before the time limit at which SLURM signals the job to save its state. A step, and writing a checkpoint,
    must take less."""
    requeues: int = 100
    """How many times a job may be queued again after a time limit, a preemption or the loss of a node."""
    array_parallelism: int | None = None
    """Cells of a sweep that may run at the same time; null sets no limit."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigurationError: A number is out of its range, or `time` or one of `options` is not of SLURM's form.
        """
        check_ranges(
            "cluster",
            self,
            cpus_per_task=POSITIVE,
            signal_seconds=POSITIVE,
            requeues=NOT_NEGATIVE,
            array_parallelism=POSITIVE,
        )
        if self.time is not None and not re.fullmatch(TIME, self.time):
            raise ConfigurationError(f"cluster.time={self.time} is not a duration; write 24:00:00 or 2-00:00.")
        for option in self.options:
            if not option.startswith("-") or "\n" in option:
                raise ConfigurationError(f"cluster.options: {option} is not an option of sbatch, such as --qos=high.")


@dataclass(kw_only=True)
class PathsConfig:
    """Folders."""

    artifacts: str
    """Folder for everything that the data pipeline builds, shared by all runs; the environment variable
    RETRO_LAB_ARTIFACTS sets it."""
    outputs: str
    """Folder that holds a folder for each run; the environment variable RETRO_LAB_OUTPUTS sets it."""


@dataclass(kw_only=True)
class ScaleConfig:
    """What the sweeps of the paper's tables and figures take from the scale that they run at."""

    name: str | None = None
    """Name of the scale, as in `scale=NAME`."""
    sizes: list[str] = field(default_factory=list)
    """Options of `size` to compare, from the smallest to the largest."""
    datasets: list[str] = field(default_factory=list)
    """Texts to score language models on (Table 14), as in `evaluation.datasets`; the first is the main one."""
    pile: list[str] = field(default_factory=list)
    """Texts in place of the Pile's parts (Table 15)."""
    small_corpus: str | None = None
    """Experiment with one corpus, and other ones to retrieve from (Table 4)."""
    databases: list[str] = field(default_factory=list)
    """Other databases to score language models with (Table 14), as in `evaluation.databases`."""
    fractions: list[float] = field(default_factory=list)
    """Shares of the database to score language models with (Figure 1, middle), as in `evaluation.fractions`."""
    small_corpus_databases: list[str] = field(default_factory=list)
    """Other databases to score the RETROfit of `small_corpus` with (Table 4)."""
    sources: list[str | None] = field(default_factory=list)
    """Corpora to retrieve from in training, as in `database.corpus`; null is the corpus that is trained on."""
    ablation_tokens: float | None = None
    """Tokens to train each variant of an ablation on (Table 13)."""


@dataclass(kw_only=True)
class RunConfig:
    """The whole configuration of a run."""

    task: TaskConfig
    size: SizeConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    corpus: CorpusConfig
    corpus_name: str
    """Name of the corpus in tables; the default is the name of its option."""
    corpora: dict[str, CorpusConfig] = field(default_factory=dict)
    """Other corpora by name, to retrieve from (`database.corpus`, `evaluation.databases`) or to score
    (`evaluation.datasets`). Options of `corpus` need no entry here. Add your own files with
    `+corpus@corpora.NAME=local corpora.NAME.path=FILE`."""
    deduplication: DeduplicationConfig = field(default_factory=DeduplicationConfig)
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    tokenizer: TokenizerConfig
    embedder: EmbedderConfig
    index: IndexConfig = field(default_factory=IndexConfig)
    data: DataConfig = field(default_factory=DataConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    paths: PathsConfig
    build: BuildConfig = field(default_factory=BuildConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    # These three have no schema: Lightning checks them itself, and users add their own entries by name.
    trainer: dict[str, Any]
    """Arguments of Lightning's Trainer."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning's callbacks, each with a name and the class to instantiate."""
    logger: dict[str, Any] = field(default_factory=dict)
    """Lightning's loggers, each with a name and the class to instantiate."""
    seed: int = 0
    """Seed of weights, dropout and batch order. `database.seed` orders documents, so that models of all seeds share
    them."""
    name: str | None = None
    """Name of the run's or the sweep's folder; null derives it from the experiment and the overrides."""

    def __post_init__(self) -> None:
        """Check the seed, and that the lengths fit together.

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
        if self.backbone.name is Backbone.hf:
            self._check_backbone()

    def _check_backbone(self) -> None:
        """Check that nothing contradicts the base's own decoder.

        Raises:
            ConfigurationError: A setting does.
        """
        if not isinstance(self.tokenizer, PretrainedTokenizerConfig):
            raise ConfigurationError(
                "backbone=hf needs its base's own tokenizer, whose ids the base has learned; set tokenizer=backbone."
            )
        if self.init.name is not Init.retrofit:
            raise ConfigurationError(
                f"init={self.init.name} contradicts backbone=hf, which starts from a trained model; leave it out."
            )
        if self.init.checkpoint is not None:
            raise ConfigurationError(
                "init.checkpoint names a baseline of the paper's decoder; with backbone=hf, name the base in "
                "backbone.model instead."
            )
        if self.model.document_masks:
            raise ConfigurationError(
                "model.document_masks=true is impossible with backbone=hf, whose base masks its attention itself."
            )
        if self.compute.compile:
            raise ConfigurationError(
                "compute.compile=true is impossible with backbone=hf, whose layers get their neighbors from functions "
                "that no compiled graph holds; set it to false."
            )
        if not self.model.tied_readout:
            raise ConfigurationError(
                "model.tied_readout=false is impossible with backbone=hf, whose base has a read-out of its own."
            )
