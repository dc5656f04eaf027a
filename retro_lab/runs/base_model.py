"""The pretrained decoder that a RETROfit is of: from the Hugging Face hub, a folder, or a .gguf file.

Its configuration is enough to plan with; its weights are read once they are needed, and are known by their checksum.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import huggingface_hub
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.corpus.hub_models import hub_commit
from retro_lab.corpus.pretrained_tokenizer import GGUF
from retro_lab.errors import ConfigurationError
from retro_lab.model.backbones.layouts import size_of
from retro_lab.model.backbones.retrofitted import RetrofittedModel
from retro_lab.model.config import Matrices, ModelConfig, SizeConfig

SAFETENSORS = "*.safetensors"


@dataclass(frozen=True)
class BaseModel:
    """A pretrained decoder."""

    name: str
    """Name on the hub, or the absolute path of a folder or a .gguf file."""
    commit: str | None
    """Of a model on the hub; None on disk."""

    @classmethod
    @cache
    def of(cls, model: str, revision: str | None = None) -> "BaseModel":
        """Find a model; nothing but the commit of its revision is asked for.

        Args:
            model: Name on the hub, a folder, or a .gguf file.
            revision: Commit, tag or branch on the hub; None is the main branch.

        Raises:
            ConfigurationError: There is no such model, or it cannot be reached.
        """
        path = Path(model).expanduser()
        if path.exists():
            return cls(str(path.resolve()), None)
        return cls(model, hub_commit(model, revision, "backbone"))

    @cached_property
    def config(self) -> PretrainedConfig:
        """Its configuration, which is read without its weights.

        Raises:
            ConfigurationError: It cannot be read.
        """
        try:
            return AutoConfig.from_pretrained(self._folder, **self._arguments)
        except Exception as error:  # transformers passes on errors of many libraries
            raise self._unreadable("configuration", error) from error

    @cached_property
    def size(self) -> SizeConfig:
        """The `size` of its decoder; the encoder's is not its own.

        Chunked cross-attention is in every third layer from the sixth (Borgeaud et al. 2022, Table 12), or in the last
        of fewer than six.

        Raises:
            ConfigurationError: It cannot be RETROfitted.
        """
        nothing = SizeConfig(
            name=Path(self.name).name.removesuffix(GGUF),
            width=2,
            ffw_width=1,
            heads=1,
            head_size=2,
            layers=1,
            cca_layers=[],
        )
        layers = int(self.config.num_hidden_layers)
        return size_of(self.config, nothing, list(range(6, layers + 1, 3)) or [layers])

    @property
    def vocabulary_size(self) -> int:
        """Rows of its embedding."""
        return int(self.config.vocab_size)

    @property
    def longest(self) -> int | None:
        """Most tokens that it has positions for; None if its configuration does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of its weights, in hexadecimal; of several files, that of their names and checksums.

        Raises:
            ConfigurationError: It has no weights, or only pickled ones.
        """
        if Path(self.name).is_file():
            return file_checksum(Path(self.name))
        files = sorted(self._files().glob(SAFETENSORS))
        if not files:
            raise ConfigurationError(
                f"backbone.model={self.name} has no weights in the format safetensors, the only one that is read "
                "besides GGUF; pickled ones can run code of their own."
            )
        if len(files) == 1:
            return file_checksum(files[0])
        return hashlib.sha256("".join(f"{file.name} {file_checksum(file)}\n" for file in files).encode()).hexdigest()

    def load(self) -> PreTrainedModel:
        """Read the model with its weights, in float32 and evaluation mode.

        Raises:
            ConfigurationError: It cannot be read.
        """
        try:
            found = AutoModelForCausalLM.from_pretrained(
                self._folder, dtype=torch.float32, use_safetensors=True, config=self.config, **self._arguments
            )
        except Exception as error:  # transformers passes on errors of many libraries
            raise self._unreadable("weights", error) from error
        assert isinstance(found, PreTrainedModel)
        return found.eval()

    def without_weights(self) -> PreTrainedModel:
        """Return the model on the meta device."""
        with torch.device("meta"):
            found = AutoModelForCausalLM.from_config(self.config)
        assert isinstance(found, PreTrainedModel)
        return found

    def retrofitted_without_weights(self, size: SizeConfig, model: ModelConfig) -> RetrofittedModel:
        """Return its RETROfit on the meta device, with neighbors in the layers that `size` names."""
        with torch.device("meta"):
            return RetrofittedModel(self.without_weights(), size, model, list(size.cca_layers))

    @cached_property
    def matrices(self) -> Matrices:
        """The entries of the matrices that each token is multiplied with in all of its layers."""
        found: Counter[bool] = Counter()
        base = self.without_weights().base_model
        tables = {id(base.get_input_embeddings().weight)}
        for name, weight in base.named_parameters():
            if weight.ndim >= 2 and id(weight) not in tables and ".embed" not in name and name != "wpe.weight":
                found["attn" in name or "attention" in name] += weight.numel()
        return Matrices(attention=found[True], feed_forward=found[False])

    def _files(self) -> Path:
        """Return the folder of its weights, which are downloaded if they have not been."""
        if self.commit is None:
            return Path(self.name)
        try:
            return Path(
                huggingface_hub.snapshot_download(
                    self.name, revision=self.commit, allow_patterns=[SAFETENSORS, "*.json"]
                )
            )
        except Exception as error:  # the client passes on errors of its HTTP library
            raise self._unreadable("weights", error) from error

    @property
    def _folder(self) -> str:
        path = Path(self.name)
        return str(path.parent) if path.is_file() else self.name

    @property
    def _arguments(self) -> dict[str, str]:
        if Path(self.name).is_file():
            return {"gguf_file": Path(self.name).name}
        return {"revision": self.commit} if self.commit else {}

    def _unreadable(self, part: str, error: Exception) -> ConfigurationError:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        return ConfigurationError(
            f"The {part} of backbone.model={self.name} cannot be read ({reason}); name a model of the hub, a folder "
            "with config.json and safetensors, or a .gguf file."
        )


def from_configuration(path: Path) -> PreTrainedModel:
    """Build a decoder with random weights from the file of its configuration.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    found = AutoModelForCausalLM.from_config(AutoConfig.for_model(**content), dtype=torch.float32)
    assert isinstance(found, PreTrainedModel)
    return found.eval()
