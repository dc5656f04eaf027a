"""A trained model, which opens from its folder alone, without overrides or an artifact store.

model.json           what the model is (`ModelSettings`), with checksums of weights and tokenizer; written last
model.safetensors    weights
tokenizer.json       with document_marker.json, as `DocumentTokenizer` writes them
identity.json        everything that decided it (`retro_lab.runs.identity`)
result.json          how it was trained and scored (`retro_lab.runs.records`)
examples.json        chunks beside the neighbors they were scored with (`retro_lab.runs.examples`)
scores/              each chunk's share in each score (`retro_lab.runs.chunk_scores`)
checkpoints/         the training state to resume from (`retro_lab.training.checkpoints`)
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from retro_lab.artifacts.disk import replacing
from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.artifacts.manifest import write_json
from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.errors import ArtifactError
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel
from retro_lab.retrieval.config import Value
from retro_lab.runs.folder import MODELS

SETTINGS_NAME = "model.json"
WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Everything needed to build a model, and the form of its inputs."""

    size: SizeConfig
    """Without layers in P for a baseline."""
    model: ModelConfig
    vocabulary_size: int
    k: int
    """Neighbors of each chunk in training; 0 for a baseline."""
    value: Value
    """The parts of a neighbor that the model reads."""
    sequence_length: int
    """Tokens of a training sequence."""

    def build(self) -> RetroModel:
        """Create the model with random weights."""
        return RetroModel(self.size, self.model, self.vocabulary_size)


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with its weights, in evaluation mode, and its tokenizer."""

    folder: Path
    settings: ModelSettings
    model: RetroModel
    tokenizer: DocumentTokenizer


def save_model(
    folder: Path, weights: Mapping[str, Tensor], settings: ModelSettings, tokenizer: DocumentTokenizer
) -> None:
    """Write everything that `open_run` reads into a model's folder.

    Args:
        folder: Of the model.
        weights: Of the model, as `whole_weights` returns them.
        settings: Of the model.
        tokenizer: That made its tokens.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    with replacing(folder / WEIGHTS_NAME) as file:
        save_file(dict(weights), file.name)
    checksums = {"weights": weights_checksum(folder), "tokenizer": tokenizer.checksum}
    write_json(folder / SETTINGS_NAME, json.loads(json.dumps(asdict(settings))) | {"sha256": checksums})


def weights_checksum(folder: Path) -> str:
    """Return the SHA-256 of the weights in a model's folder."""
    return file_checksum(folder / WEIGHTS_NAME)


def open_run(folder: Path | str, model: str | None = None) -> TrainedModel:
    """Open a trained model.

    Args:
        folder: Of a run or of one of its models, wherever it was copied to.
        model: `retro` or `baseline`; None takes the RETRO of a run, or the baseline if there is no RETRO.

    Raises:
        ArtifactError: There is no such model, or one of its files is damaged.
    """
    folder = Path(folder)
    if model is None:
        names = [name for name in ("", *reversed(MODELS)) if (folder / name / SETTINGS_NAME).is_file()]
    else:
        names = [model] if (folder / model / SETTINGS_NAME).is_file() else []
    if not names:
        raise ArtifactError(f"{folder} holds no trained {model or 'model'}: there is no {SETTINGS_NAME} in it.")
    return _open(folder / names[0])


def has_model(folder: Path) -> bool:
    """Return whether a model's folder holds a trained model."""
    return (folder / SETTINGS_NAME).is_file()


def read_weights(folder: Path) -> Mapping[str, Tensor]:
    """Read the weights in a model's folder, by the names of `RetroModel`.

    Raises:
        ArtifactError: They are missing, or differ from those that were written.
    """
    _, checksums = _read_settings(folder)
    return _read_weights(folder, checksums["weights"])


def _open(folder: Path) -> TrainedModel:
    settings, checksums = _read_settings(folder)
    try:
        tokenizer = DocumentTokenizer.load(folder)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise _damaged(folder / "tokenizer.json", str(error)) from error
    if tokenizer.checksum != checksums["tokenizer"]:
        raise _damaged(folder / "tokenizer.json", "it is not the one that was written")
    with torch.device("meta"):
        model = settings.build()
    model.load_state_dict(_read_weights(folder, checksums["weights"]), assign=True)
    return TrainedModel(folder=folder, settings=settings, model=model.eval(), tokenizer=tokenizer)


def _read_settings(folder: Path) -> tuple[ModelSettings, dict[str, str]]:
    path = folder / SETTINGS_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksums = content.pop("sha256")
        settings = TypeAdapter(ModelSettings).validate_python(content)
        return settings, {name: str(checksums[name]) for name in ("weights", "tokenizer")}
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} holds no trained model: there is no {SETTINGS_NAME} in it.") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from error


def _read_weights(folder: Path, checksum: str) -> dict[str, Tensor]:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no trained model: there is no {WEIGHTS_NAME} in it.")
    if weights_checksum(folder) != checksum:
        raise _damaged(path, "its bytes are not those that were written")
    return load_file(path)


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged ({reason}); copy the run's folder again, or delete result.json beside it and run the "
        "command that trained the model again, which rewrites the model from its last checkpoint."
    )
