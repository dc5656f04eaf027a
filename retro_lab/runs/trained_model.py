"""A trained model, which opens from its folder alone, without overrides or an artifact store.

model.json           what the model is (`ModelSettings`), with checksums of weights and tokenizer; written last
model.safetensors    weights; of a RETROfit of a pretrained decoder that is frozen, only the new ones
base.json            configuration of that decoder, where its weights are saved, too
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
from typing import TYPE_CHECKING

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from retro_lab.artifacts.disk import replacing
from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.artifacts.manifest import write_json
from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.errors import ArtifactError
from retro_lab.model.config import Matrices, ModelConfig, SizeConfig
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.retro import RetroModel
from retro_lab.retrieval.config import Value
from retro_lab.runs.folder import MODELS

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SETTINGS_NAME = "model.json"
BASE_NAME = "base.json"
WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """The pretrained decoder that a model is a RETROfit of."""

    model: str
    """Its name on the hub, or the path of its folder or .gguf file."""
    commit: str | None
    """Of a model on the hub."""
    sha256: str
    """Of its weights (`retro_lab.runs.base_model`)."""
    frozen: bool
    """Whether its weights are as they were."""
    saved: bool
    """Whether they are saved with the new ones."""
    matrices: Matrices
    """What its FLOPs are counted from."""

    @property
    def short_name(self) -> str:
        """Its name on the hub, or that of its folder or file without where this is, which is no one else's business."""
        return self.model if self.commit else Path(self.model).name


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
    backbone: BackboneSettings | None = None
    """None for the paper's decoder."""

    def build(self, base: "PreTrainedModel | None" = None) -> LanguageModel:
        """Create the model with random weights.

        Args:
            base: The decoder of a model with a `backbone`; it keeps its weights.
        """
        if self.backbone is None:
            return RetroModel(self.size, self.model, self.vocabulary_size)
        from retro_lab.model.backbones.retrofitted import RetrofittedModel  # which loads much of transformers

        assert base is not None
        return RetrofittedModel(base, self.size, self.model, list(self.size.cca_layers), frozen=self.backbone.frozen)

    def saved_names(self, model: LanguageModel) -> set[str]:
        """Return the names of the weights of a model that are saved; of tied ones, which are one weight, the first."""
        if self.backbone is not None and not self.backbone.saved:
            return {name for name, _ in model.retrieval_parameters()}
        every, once = ({name for name, _ in model.named_parameters(remove_duplicate=once)} for once in (False, True))
        return model.state_dict().keys() - (every - once)


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with its weights, in evaluation mode, and its tokenizer."""

    folder: Path
    settings: ModelSettings
    model: LanguageModel
    tokenizer: DocumentTokenizer


def save_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    settings: ModelSettings,
    tokenizer: DocumentTokenizer,
    base: "PretrainedConfig | None" = None,
) -> None:
    """Write everything that `open_model` reads into a model's folder.

    A RETROfit of a run's own baseline is saved whole, so that its folder opens by itself, wherever it is copied to: its
    baseline is a file of the user's own that nobody else could find again, and no larger than the run.

    Args:
        folder: Of the model.
        weights: Those of `settings.saved_names`, as `whole_weights` returns them.
        settings: Of the model.
        tokenizer: That made its tokens.
        base: Configuration of a pretrained decoder; it is written if the weights hold that decoder's.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    if base is not None and settings.backbone is not None and settings.backbone.saved:
        with replacing(folder / BASE_NAME) as file:
            file.write(base.to_json_string(use_diff=False).encode())
    with replacing(folder / WEIGHTS_NAME) as file:
        save_file(dict(weights), file.name)
    checksums = {"weights": weights_checksum(folder), "tokenizer": tokenizer.checksum}
    write_json(folder / SETTINGS_NAME, json.loads(json.dumps(asdict(settings))) | {"sha256": checksums})


def weights_checksum(folder: Path) -> str:
    """Return the SHA-256 of the weights in a model's folder."""
    return file_checksum(folder / WEIGHTS_NAME)


def open_model(folder: Path | str, model: str | None = None, base: str | None = None) -> TrainedModel:
    """Open a trained model.

    Args:
        folder: Of a run or of one of its models, wherever it was copied to.
        model: `retro` or `baseline`; None takes the RETRO of a run, or the baseline if there is no RETRO.
        base: Of a RETROfit of a pretrained decoder: where that decoder is now, if not where it was in training.

    Raises:
        ArtifactError: There is no such model, one of its files is damaged, or the decoder that it is a RETROfit of is
            gone or another one.
    """
    folder = Path(folder)
    if model is None:
        names = [name for name in ("", *reversed(MODELS)) if (folder / name / SETTINGS_NAME).is_file()]
    else:
        names = [model] if (folder / model / SETTINGS_NAME).is_file() else []
    if not names:
        raise ArtifactError(f"{folder} holds no trained {model or 'model'}: there is no {SETTINGS_NAME} in it.")
    return _open(folder / names[0], base)


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


def _open(folder: Path, base: str | None) -> TrainedModel:
    settings, checksums = _read_settings(folder)
    try:
        tokenizer = DocumentTokenizer.load(folder)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise _damaged(folder / "tokenizer.json", str(error)) from error
    if tokenizer.checksum != checksums["tokenizer"]:
        raise _damaged(folder / "tokenizer.json", "it is not the one that was written")
    weights = _read_weights(folder, checksums["weights"])
    if settings.backbone is None:
        with torch.device("meta"):
            model = settings.build()
        model.load_state_dict(weights, assign=True)
    else:
        model = settings.build(_base(folder, settings.backbone, base))
        if weights.keys() != settings.saved_names(model):
            raise _damaged(folder / WEIGHTS_NAME, "it does not hold the weights of this model")
        model.load_state_dict(weights, strict=False)
    return TrainedModel(folder=folder, settings=settings, model=model.eval(), tokenizer=tokenizer)


def _base(folder: Path, backbone: BackboneSettings, place: str | None) -> "PreTrainedModel":
    """Return the pretrained decoder of a model; if its weights are saved in the folder, with any weights."""
    from retro_lab.runs.base_model import BaseModel, base_of  # which loads much of transformers

    if backbone.saved:
        try:
            return base_of(json.loads((folder / BASE_NAME).read_text(encoding="utf-8")))
        except Exception as error:  # transformers passes on errors of many libraries
            raise _damaged(folder / BASE_NAME, next(iter(str(error).splitlines()), type(error).__name__)) from error
    name = place or backbone.model
    on_disk = Path(name).expanduser().exists()
    if backbone.commit is None and not on_disk:
        raise ArtifactError(
            f"{folder} is a RETROfit of {name}, which is not there; say where it is now, with backbone.model=PATH or "
            "open_run(folder, base=PATH)."
        )
    base = BaseModel.of(name, None if on_disk else backbone.commit)
    if base.sha256 != backbone.sha256:
        raise ArtifactError(
            f"{folder} is a RETROfit of other weights than those of {name} (SHA-256 {backbone.sha256[:12]}, not "
            f"{base.sha256[:12]}); name the model that it was trained on."
        )
    return base.load()


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
