"""The configuration that a run's folder holds, for those who want the run's database without its command.

It is read, not composed anew: the experiments and groups that its overrides name may have changed since.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retro_lab.config import resolvers
from retro_lab.config.explain import explain
from retro_lab.config.schema import KINDS
from retro_lab.errors import ArtifactError, ConfigurationError
from retro_lab.runs.folder import CONFIG_NAME, RunFolder, read_config
from retro_lab.runs.trained_model import ModelSettings
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.task_config import Task, TaskConfig
from retro_lab.training.config import Init, InitConfig

DECIDE_DATABASE = (
    "retrieval", "database", "corpus", "corpora", "deduplication", "decontamination", "tokenizer", "embedder", "index",
    "data", "evaluation", "paths",
)  # fmt: skip
"""Groups that decide what a run's database is, and where."""


def find_config(folder: Path) -> RunFolder:
    """Read the configuration of the run that a model's folder is a part of.

    Raises:
        ArtifactError: The folder was copied without it, or it is damaged.
    """
    places = [folder, *folder.absolute().parents[:2]]  # of a fine-tuned model, two folders up
    place = next((place for place in places if (place / CONFIG_NAME).is_file()), None)
    if place is None:
        raise ArtifactError(
            f"{folder} is not in a run's folder with a {CONFIG_NAME}, which says what its database is; open it where "
            "the run wrote it, or copy that file as well."
        )
    try:
        content = read_config(place)
        return RunFolder(place, tuple(map(str, content["overrides"])), dict(content["settings"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{place / CONFIG_NAME} is damaged ({error}); copy the run's folder again.") from error


def database_config(run: RunFolder, model: ModelSettings) -> RunConfig:
    """Return the part of a run's configuration that decides its database, with default values in place of the rest.

    Args:
        run: With its settings.
        model: Of one of its models.

    Raises:
        ConfigurationError: Another release wrote the settings, and this one has no such settings.
    """
    if missing := [name for name in DECIDE_DATABASE if name not in run.settings]:
        raise ConfigurationError(
            f"{run.path / CONFIG_NAME} has no settings of {missing[0]}, which this release needs; open the run with "
            "the release that wrote it, or train it again."
        )
    resolvers.register()
    try:
        root = OmegaConf.create(dict(run.settings))
        for path, schema in _schemas(run.settings):
            OmegaConf.update(root, path, OmegaConf.merge(schema, OmegaConf.select(root, path)), merge=False)
        groups: dict[str, Any] = {name: OmegaConf.to_object(root[name]) for name in DECIDE_DATABASE}
    except OmegaConfBaseException as error:
        raise ConfigurationError(
            f"{run.path / CONFIG_NAME} does not fit this release ({explain(error).rstrip('.')}); open the run with the "
            "release that wrote it, or train it again."
        ) from error
    return RunConfig(
        **groups,
        task=TaskConfig(name=Task.build),
        size=model.size,
        model=model.model,
        init=InitConfig(name=Init.scratch),
        corpus_name=f"the corpus of {run.path.name}",
        trainer={},
    )


def _schemas(settings: Mapping[str, Any]) -> Iterator[tuple[str, type]]:
    """Yield the places of settings that have schemas, and the schemas."""
    own = get_type_hints(RunConfig)
    for name in DECIDE_DATABASE:
        if name == "corpora":
            for corpus, node in settings[name].items():
                yield f"{name}.{corpus}", _kind("corpus", node, own["corpus"])
        else:
            yield name, _kind(name, settings[name], own[name])


def _kind(group: str, node: Mapping[str, Any], general: type) -> type:
    """Return the schema of a group's option: of those with fields of their own, by what it instantiates."""
    kinds = {getattr(kind, "_target_", None): kind for kind in KINDS.get(group, {}).values()}
    return kinds.get(node.get("_target_"), general)
