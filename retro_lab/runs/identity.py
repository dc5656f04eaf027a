"""A model's identity: everything that decides what is trained, and thus a folder's name and whether it is resumed.

Devices, strategies, compilation, workers, loggers and callbacks are not part of it: the same command on other hardware
resumes in the same folder.
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
    "build", "cluster", "name", "data.workers", "data.micro_batch_size", "schedule.max_skipped_steps",
    "backbone.save_base",
)  # fmt: skip
"""Settings that do not affect what is trained, except for `PRECISION`."""
BUILT = ("corpus", "deduplication", "decontamination", "tokenizer", "database", "embedder", "index")
"""Groups that affect a model only through the artifacts built from them, so their fingerprints identify them."""
SCALE = "scale"
"""What is chosen with it decides what is trained; its own settings only say what sweeps compare."""
USED = ("k", "value")
"""Settings of `retrieval` that the model itself uses; the neighbors' fingerprint covers the others."""


OWN_NAME = "give this run a name of its own with name=NAME, or delete that folder"
DECIDE_SCORES = ("size", "model", "retrieval", "trainer", "corpus")
"""Sections of an identity that a model's scores depend on, rather than only its training."""


def decides(key: str) -> bool:
    """Return whether a setting or a group, such as `trainer.precision` or `size`, decides what is trained.

    A group that is mounted elsewhere, as in `corpus@corpora.mine`, counts as the setting it is mounted at.
    """
    key = key.rpartition("@")[2]
    if key.startswith(f"{SCALE}."):
        return False
    return key == PRECISION or not any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in UNDECIDING)


def identity(
    settings: Mapping[str, Any], precision: str, inputs: Mapping[str, str], start: str | None = None
) -> dict[str, Any]:
    """Return everything that decides a trained model, as values that JSON can hold.

    Args:
        settings: The whole configuration as dictionaries; `retrieval.k` is 0 for a baseline.
        precision: Full name of the training precision.
        inputs: Fingerprints of the artifacts that the model is trained on, by role: `corpus` and `database`.
        start: Checksum of the initial weights, unless they are random.
    """
    decided = _decided(settings, "")
    for group in (*BUILT, SCALE):
        decided.pop(group, None)
    retrieval = decided.pop("retrieval")
    if retrieval["k"]:
        decided["retrieval"] = {name: retrieval[name] for name in USED}
    backbone = decided.pop("backbone")
    if backbone["model"] is not None:
        decided["backbone"] = {"name": backbone["name"]}
    if start is not None:
        decided["init"] = decided["init"] | {"checkpoint": start}  # the same path may hold other weights later
    content = decided | {"trainer": {"precision": precision}, **inputs}
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def check_identity(folder: Path, wanted: Mapping[str, Any], advice: str = OWN_NAME) -> None:
    """Compare the model in a folder, if there is one, with the model wanted.

    Args:
        folder: Of one model.
        wanted: The wanted identity, or the sections of it that matter.
        advice: What to do if they differ.

    Raises:
        ConfigurationError: They differ.
        ArtifactError: The folder's `identity.json` cannot be read.
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
            f"{path} cannot be read ({error}), so the settings that {folder} was trained with are unknown; delete that "
            "folder to train it again, or give this run a name of its own with name=NAME."
        ) from error
    if changed := differences({name: found.get(name) for name in wanted}, wanted):
        raise ConfigurationError(
            f"{folder} holds a model trained with other settings ({'; '.join(changed[:3])}); {advice}."
        )


def check_scored(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Compare the model in a folder with the settings and the corpus that it would be scored with.

    The neighbors may differ: a model can be scored with any database.

    Raises:
        ConfigurationError: It was trained with other settings, or on other data, such as documents now held out.
        ArtifactError: The folder's `identity.json` cannot be read.
    """
    sections = {name: wanted[name] for name in DECIDE_SCORES if name in wanted}
    check_identity(folder, sections, "score it with the overrides it was trained with")


def write_identity(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a model's identity into its folder; from now on `check_identity` refuses other models there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / IDENTITY_NAME, content)


def _decided(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    kept = {key: value for key, value in node.items() if decides(f"{prefix}{key}")}
    return {
        key: _decided(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value for key, value in kept.items()
    }
