"""The root schema: every group's dataclass in its place, so that unknown keys and wrong types are refused."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import MISSING, OmegaConf

from retro_lab.corpus.config import (
    ByteBPEConfig,
    CorpusConfig,
    DecontaminationConfig,
    HubConfig,
    LocalConfig,
    MixtureConfig,
    PretrainedTokenizerConfig,
    PythonSourceConfig,
    TokenizerConfig,
    WikipediaConfig,
)
from retro_lab.evaluation.config import EvaluationConfig
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.retrieval.config import DatabaseConfig, EmbedderConfig, IndexConfig, RetrievalConfig
from retro_lab.tasks.config import InspectConfig, PlanConfig, TaskConfig
from retro_lab.training.config import ComputeConfig, DataConfig, InitConfig, OptimizerConfig, ScheduleConfig

SCHEMA_SUFFIX = "_schema"


@dataclass(kw_only=True)
class PathsConfig:
    """Folders."""

    artifacts: str = MISSING
    """Root of the artifact store."""
    outputs: str = MISSING
    """Root of the run folders."""


@dataclass(kw_only=True)
class RunConfig:
    """Everything a run is configured by."""

    task: TaskConfig = MISSING
    size: SizeConfig = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = MISSING
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    corpus: CorpusConfig = MISSING
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    tokenizer: TokenizerConfig = MISSING
    embedder: EmbedderConfig = MISSING
    index: IndexConfig = field(default_factory=IndexConfig)
    data: DataConfig = field(default_factory=DataConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    paths: PathsConfig = MISSING
    # No schema for these three: Lightning checks them itself, and users add entries of their own by name.
    trainer: dict[str, Any] = MISSING
    """Arguments of Lightning's Trainer."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning's callbacks, each a class to make under a name of its own."""
    logger: dict[str, Any] = field(default_factory=dict)
    """Lightning's loggers, each a class to make under a name of its own."""
    seed: int = 0
    """Of weights, dropout and batch order; `database.seed` orders documents, so that models of all seeds share them."""
    name: str | None = None
    """Name of the run folder, or of the sweep's; null makes it from the experiment and the overrides."""


KINDS: dict[str, dict[str, type]] = {
    "corpus": {
        "python_source": PythonSourceConfig,
        "local": LocalConfig,
        "hub": HubConfig,
        "wikipedia": WikipediaConfig,
        "mixture": MixtureConfig,
    },
    "tokenizer": {"byte_bpe": ByteBPEConfig, "pretrained": PretrainedTokenizerConfig},
    "task": {"inspect": InspectConfig, "plan": PlanConfig},
}
"""Schemas of the groups whose options have fields of their own; a group's files name theirs as `KIND_schema`."""


class Schemas(ConfigSource):
    """The schemas as configurations that files can name and that nobody is offered as an option.

    Hydra's own store of such classes would list them where it completes options, expands `GROUP=glob(*)` and tells
    which options there are.
    """

    @staticmethod
    def scheme() -> str:
        """Return the scheme of the addresses that this class answers."""
        return "schema"

    def available(self) -> bool:
        """Tell that the schemas are there."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Tell whether a path is a group of options: schemas are none."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Tell whether a path names a schema."""
        return _schema(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List nothing."""
        return []

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a schema with its values by default.

        Raises:
            ConfigLoadError: There is no such schema.
        """
        node = _schema(config_path)
        if node is None:
            raise ConfigLoadError(f"There is no schema {config_path}.")
        header: dict[str, str | None] = {"package": None}
        config = OmegaConf.structured(node)
        return ConfigResult(provider=self.provider, path=f"schema://{config_path}", config=config, header=header)


def _schema(config_path: str) -> type | None:
    """Return the schema of a path such as `corpus/local_schema`."""
    group, _, name = config_path.removesuffix(".yaml").rpartition("/")
    kinds = KINDS.get(group, {}) if group else {"run": RunConfig}
    return kinds.get(name.removesuffix(SCHEMA_SUFFIX)) if name.endswith(SCHEMA_SUFFIX) else None
