"""Pretrained Hugging Face decoders, as bases of RETROfit: from the hub at a commit, a folder, or a GGUF file.

Weights are read from safetensors or GGUF files alone, which hold numbers and no code.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.corpus.hub_models import hub_commit
from retro_lab.errors import ConfigurationError
from retro_lab.model.backbones.layouts import layout_of

CONFIGURATION_FILES = ["config.json", "generation_config.json"]
WEIGHTS_FILES = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]


@dataclass(frozen=True)
class BaseModel:
    """Where a base is; nothing of it is read, or downloaded, before it is asked for.

    Attributes:
        name: A repository on the hub, a folder, or a GGUF file.
        commit: Of the repository; None if it is on the disk.
    """

    name: str
    commit: str | None

    @cached_property
    def config(self) -> PretrainedConfig:
        """The base's configuration.

        Raises:
            ConfigurationError: There is none, or its architecture cannot be RETROfitted.
        """
        folder = self._folder(CONFIGURATION_FILES)
        if self._gguf is None and not (folder / "config.json").is_file():
            raise ConfigurationError(f"backbone.model={self.name} holds no model: there is no config.json in it.")
        with _explained(self.name):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **self._gguf_file)
        layout_of(config)
        if getattr(config, "quantization_config", None) is not None:
            raise ConfigurationError(
                f"backbone.model={self.name} is quantized, and RETROfit needs whole weights: name the model that it "
                "was made from."
            )
        return config

    @cached_property
    def weights_files(self) -> tuple[Path, ...]:
        """The files with the weights.

        Raises:
            ConfigurationError: There are none that can be read without running code.
        """
        if self._gguf is not None:
            return (self._gguf,)
        folder = self._folder(CONFIGURATION_FILES + WEIGHTS_FILES)
        found = sorted(path for path in folder.glob("model*.safetensors") if path.is_file())
        if not found:
            raise ConfigurationError(
                f"backbone.model={self.name} has no weights as safetensors (model.safetensors); weights in .bin files "
                "can run code and are not read, so convert them with save_pretrained, or name another revision."
            )
        return tuple(found)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights' file; of several, that of their names and their SHA-256."""
        files = self.weights_files
        if len(files) == 1:
            return file_checksum(files[0])
        whole = "".join(f"{file_checksum(path)}  {path.name}\n" for path in files)
        return hashlib.sha256(whole.encode()).hexdigest()

    def load(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Read the base into the processor's memory, in evaluation mode.

        Raises:
            ConfigurationError: It cannot be read, or weights are missing.
        """
        config, files = self.config, self.weights_files
        with _explained(self.name):
            model, found = AutoModelForCausalLM.from_pretrained(
                files[0].parent,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **self._gguf_file,
            )
        missing = sorted(found["missing_keys"])
        if missing:
            raise ConfigurationError(
                f"backbone.model={self.name} lacks {len(missing)} of the model's weights, {missing[0]} among them: it "
                "is not a whole causal language model."
            )
        return model.eval()

    @property
    def _gguf(self) -> Path | None:
        return Path(self.name) if self.name.endswith(".gguf") else None

    @property
    def _gguf_file(self) -> dict[str, str]:
        return {} if self._gguf is None else {"gguf_file": self._gguf.name}

    def _folder(self, patterns: list[str]) -> Path:
        if self.commit is None:
            return Path(self.name) if self._gguf is None else self._gguf.parent
        try:
            return Path(snapshot_download(self.name, revision=self.commit, allow_patterns=patterns))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ConfigurationError(
                f"backbone.model={self.name} cannot be downloaded ({_first_line(error)}); connect to the network, or "
                "name a folder that holds a copy."
            ) from error


def find_base(name: str, revision: str | None = None) -> BaseModel:
    """Find a base.

    Args:
        name: A GGUF file, a folder, or else a repository on the hub.
        revision: Commit, tag or branch of a repository; None is the main branch.

    Raises:
        ConfigurationError: There is no such file, folder, repository or revision.
    """
    path = Path(name).expanduser()
    if name.endswith(".gguf") and not path.is_file():
        raise ConfigurationError(f"There is no file backbone.model={name}.")
    if path.exists():
        if revision is not None:
            raise ConfigurationError(
                f"backbone.revision={revision} names a revision on the hub, and backbone.model={name} is on this "
                "machine; leave backbone.revision out."
            )
        return BaseModel(str(path.resolve()), None)
    return BaseModel(name, hub_commit(name, revision, "backbone"))


def load_base(name: str, revision: str | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Find a base and read it, as `find_base` and `BaseModel.load` do."""
    return find_base(name, revision).load(dtype)


class _explained:
    """Turns what transformers raises into one sentence."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ImportError):
            raise ConfigurationError(
                f"backbone.model={self._name} needs packages that are not installed ({_first_line(error)}); for a GGUF "
                "file: pip install gguf accelerate."
            ) from error
        if isinstance(error, Exception):
            raise ConfigurationError(
                f"backbone.model={self._name} cannot be read by transformers ({_first_line(error)})."
            ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
