"""What decides a trained model: its record, whether a folder is resumed, and the folder's name all follow from this.

Devices, strategies, compilation, workers, loggers and callbacks are not part of it: whoever runs the same command on
other hardware goes on in the same folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retro_lab.artifacts.fingerprint import differences
from retro_lab.artifacts.manifest import write_json
from retro_lab.errors import ArtifactError, ConfigurationError

IDENTITY_NAME = "identity.json"
PRECISION = "trainer.precision"
UNDECIDING = (
    "task", "evaluation", "paths", "logger", "callbacks", "compute", "trainer", "corpora", "corpus_name", "hydra",
    "name", "data.workers",
)  # fmt: skip
"""Settings that change nothing of what is trained, but for `PRECISION`."""
BUILT = ("corpus", "decontamination", "tokenizer", "database", "embedder", "index")
"""Groups that a model knows by what is built from them alone: by the fingerprints of its inputs."""
USED = ("k", "value")
"""Settings of `retrieval` that the model itself uses; what the others decide is in the neighbors' fingerprint."""


OWN_NAME = "give this run a name of its own with name=NAME, or delete that folder"
DECIDE_SCORES = ("size", "model", "retrieval", "trainer", "corpus")
"""Sections of an identity that a model's scores depend on, and not its training alone."""


def decides(key: str) -> bool:
    """Tell whether a setting or a group, such as `trainer.precision` or `size`, decides what is trained.

    A group that is put elsewhere, as in `corpus@corpora.mine`, is known by where it is put.
    """
    key = key.rpartition("@")[2]
    return key == PRECISION or not any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in UNDECIDING)


def identity(
    settings: Mapping[str, Any], precision: str, inputs: Mapping[str, str], start: str | None = None
) -> dict[str, Any]:
    """Return all that decides a trained model, as JSON-able values.

    Args:
        settings: The whole configuration as dictionaries; `retrieval.k` is 0 for a baseline.
        precision: That of the training, by its full name.
        inputs: Fingerprints of the artifacts that the model is trained on, by role: `corpus` and `database`.
        start: Checksum of the weights that it starts from, unless they are random.
    """
    decided = _decided(settings, "")
    for group in BUILT:
        decided.pop(group, None)
    retrieval = decided.pop("retrieval")
    if retrieval["k"]:
        decided["retrieval"] = {name: retrieval[name] for name in USED}
    if start is not None:
        decided["init"] = decided["init"] | {"checkpoint": start}  # its path may stay while its weights change
    content = decided | {"trainer": {"precision": precision}, **inputs}
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def check_identity(folder: Path, wanted: Mapping[str, Any], advice: str = OWN_NAME) -> None:
    """Compare the model in a folder, if there is one, with the model wanted.

    Args:
        folder: Of one model.
        wanted: The identity, or those of its sections that matter.
        advice: What to do if they differ.

    Raises:
        ConfigurationError: They differ.
        ArtifactError: What says how the folder was made cannot be read.
    """
    path = folder / IDENTITY_NAME
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not a table of settings")
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}), so nothing says with which settings {folder} was trained; delete that "
            "folder to train it again, or give this run a name of its own with name=NAME."
        ) from error
    if changed := differences({name: found.get(name) for name in wanted}, wanted):
        raise ConfigurationError(
            f"{folder} holds a model trained with other settings ({'; '.join(changed[:3])}); {advice}."
        )


def check_scored(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Compare the model in a folder with the settings and the corpus that it is to be scored with.

    The neighbors may be others: a model can be scored with any database.

    Raises:
        ConfigurationError: It was trained on other data, such as documents that are now held out, or in other ways.
        ArtifactError: What says how the folder was made cannot be read.
    """
    sections = {name: wanted[name] for name in DECIDE_SCORES if name in wanted}
    check_identity(folder, sections, "score it with the overrides it was trained with")


def write_identity(folder: Path, content: Mapping[str, Any]) -> None:
    """Say in a model's folder what decided it; from now on `check_identity` holds others off."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / IDENTITY_NAME, content)


def _decided(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    kept = {key: value for key, value in node.items() if decides(f"{prefix}{key}")}
    return {
        key: _decided(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value for key, value in kept.items()
    }
