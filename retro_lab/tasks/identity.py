"""What decides a trained model, what decides its scores, and whether those of a folder are the ones wanted."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from retro_lab.artifacts.fingerprint import differences, file_checksum
from retro_lab.config.plain import plain
from retro_lab.corpus.corpus import Corpus
from retro_lab.errors import ArtifactError, ConfigurationError
from retro_lab.launch.run_folder import run_folder
from retro_lab.tasks.build import Database
from retro_lab.training.checkpoints import CHECKPOINT

IDENTITY_NAME = "run.json"
OWN_NAME = "give this run a name of its own with name=NAME, or delete that folder"
DECIDE_SCORES = ("size", "model", "retrieval", "trainer", "inputs")
"""Sections of a model's identity that its scores depend on, and not the training alone."""


def identity(config: DictConfig, k: int, corpus: Corpus, database: Database | None) -> dict[str, Any]:
    """All that decides what is trained: a folder is resumed or reused only by a run for which this is the same."""
    sections = {name: plain(config[name]) for name in ("size", "model", "init", "optimizer", "schedule", "data")}
    sections["data"].pop("workers")
    start = start_checkpoint(config, run_folder()) if k else None
    if start is not None and start.is_file():
        sections["init"]["checkpoint"] = file_checksum(start)  # its path may stay while its weights change
    inputs = {"tokens": corpus.stores["train"].artifact.fingerprint}
    if database is not None:
        inputs["neighbors"] = database.neighbors["train"].fingerprint
        sections["retrieval"] = {"k": k, "value": config.retrieval.value}
    precision = str(config.trainer.get("precision", "32-true"))
    return {**sections, "seed": config.seed, "trainer": {"precision": precision}, "inputs": inputs}


def start_checkpoint(config: DictConfig, run: Path) -> Path | None:
    """Return the checkpoint of the baseline that a RETRO in a run folder starts from; None for random weights."""
    return Path(config.init.checkpoint or run / "baseline" / CHECKPOINT) if config.init.name == "retrofit" else None


def check_identity(folder: Path, wanted: dict[str, Any], advice: str = OWN_NAME) -> None:
    """Compare what a folder holds, if anything, with what is wanted.

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
            raise ValueError("it is no table of settings")
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}), so nothing says with which settings {folder} was trained; delete that "
            "folder to train it again, or give this run a name of its own with name=NAME."
        ) from error
    if changed := differences({name: found.get(name) for name in wanted}, wanted):
        raise ConfigurationError(
            f"{folder} holds a model trained with other settings ({'; '.join(changed[:3])}); {advice}."
        )


def check_scored(folder: Path, wanted: dict[str, Any]) -> None:
    """Compare the model in a folder with the settings and data that it is to be scored with.

    Raises:
        ConfigurationError: It was trained on other data, such as documents that are now held out, or in other ways.
    """
    sections = {name: wanted[name] for name in DECIDE_SCORES if name in wanted}
    check_identity(folder, sections, "score it with the overrides it was trained with")


def scored_windows(config: DictConfig, corpus: Corpus) -> dict[str, str]:
    """Return which held-out text is scored and in which windows, as a record keeps it."""
    return {
        "tokens": corpus.stores["validation"].artifact.fingerprint,
        "data.sequence_length": str(config.data.sequence_length),
        "evaluation.stride": str(config.evaluation.stride),
    }
