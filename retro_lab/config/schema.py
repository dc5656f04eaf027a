"""The root schema: every group's dataclass in its place, so that unknown keys and wrong types are refused."""

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from retro_lab.corpus.config import (
    ByteBPEConfig,
    HubConfig,
    LocalConfig,
    MixtureConfig,
    PretrainedTokenizerConfig,
    PythonSourceConfig,
    SummaryConfig,
    WikipediaConfig,
    WikipediaDumpConfig,
)
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.task_config import (
    AnswerConfig,
    CompareConfig,
    ExportConfig,
    GenerateConfig,
    InspectConfig,
    PlanConfig,
    ServeConfig,
    ZeroShotConfig,
)

SCHEMA_SUFFIX = "_schema"


KINDS: dict[str, dict[str, type]] = {
    "corpus": {
        "python_source": PythonSourceConfig,
        "local": LocalConfig,
        "hub": HubConfig,
        "wikipedia": WikipediaConfig,
        "wikipedia_dump": WikipediaDumpConfig,
        "summary": SummaryConfig,
        "mixture": MixtureConfig,
    },
    "tokenizer": {"byte_bpe": ByteBPEConfig, "pretrained": PretrainedTokenizerConfig},
    "task": {
        "answer": AnswerConfig,
        "compare": CompareConfig,
        "export": ExportConfig,
        "generate": GenerateConfig,
        "inspect": InspectConfig,
        "plan": PlanConfig,
        "serve": ServeConfig,
        "zero_shot": ZeroShotConfig,
    },
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
        """Tell whether a path is a group of options; no schema is."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Tell whether a path names a schema."""
        return _schema(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List nothing."""
        return []

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a schema with its default values.

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
