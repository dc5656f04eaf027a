"""The pretrained decoder that a RETROfit is of: from the Hugging Face hub, a folder, or a GGUF file.

Its configuration is enough to plan with; its weights are read once they are needed, and are known by their checksum.
They are read from safetensors or GGUF files alone, which hold numbers and no code.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.corpus.hub_models import HUB_TIMEOUT_SECONDS, hub_commit
from retro_lab.corpus.pretrained_tokenizer import GGUF
from retro_lab.errors import ConfigurationError
from retro_lab.model.backbones.layouts import layout_of, size_of
from retro_lab.model.backbones.retrofitted import RetrofittedModel
from retro_lab.model.config import Matrices, ModelConfig, SizeConfig

CONFIGURATION = "config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIGURATION_FILES = [CONFIGURATION, "generation_config.json"]
WEIGHTS_FILES = [WEIGHTS, WEIGHTS_INDEX, "model-*.safetensors"]


@dataclass(frozen=True)
class BaseModel:
    """Where a pretrained decoder is; nothing of it is read, or downloaded, before it is asked for."""

    name: str
    """Name on the hub, or the absolute path of a folder or a GGUF file."""
    commit: str | None
    """Of a model on the hub; None on disk."""

    @classmethod
    def of(cls, model: str, revision: str | None = None) -> "BaseModel":
        """Find a model; nothing but the commit of its revision is asked for.

        Args:
            model: Name on the hub, a folder, or a GGUF file.
            revision: Commit, tag or branch on the hub; None is the main branch.

        Raises:
            ConfigurationError: There is no such model or revision, or the hub cannot be reached.
        """
        path = Path(model).expanduser()
        if model.endswith(GGUF) and not path.is_file():
            raise ConfigurationError(f"There is no file backbone.model={model}.")
        if not path.exists():
            return _on_hub(model, revision)
        if path.is_file() and not model.endswith(GGUF):
            raise ConfigurationError(
                f"backbone.model={model} is a file, but no {GGUF} file; name the folder that holds the model."
            )
        if revision is not None:
            raise ConfigurationError(
                f"backbone.revision={revision} names a revision on the hub, and backbone.model={model} is on this "
                "machine; leave backbone.revision out."
            )
        return _on_disk(path.resolve(), _state(path))

    @cached_property
    def config(self) -> PretrainedConfig:
        """Its configuration, which is read without its weights.

        Raises:
            ConfigurationError: There is none, or its architecture cannot be RETROfitted.
        """
        folder = self._folder(CONFIGURATION_FILES)
        if self._gguf is None and not (folder / CONFIGURATION).is_file():
            raise ConfigurationError(f"backbone.model={self.name} holds no model: there is no {CONFIGURATION} in it.")
        with self._explained():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **self._gguf_file)
        layout_of(config)
        if getattr(config, "quantization_config", None) is not None:
            raise ConfigurationError(
                f"backbone.model={self.name} is quantized, and RETROfit needs whole weights: name the model that it "
                "was made from."
            )
        assert isinstance(config, PretrainedConfig)
        return config

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
    def weights_files(self) -> tuple[Path, ...]:
        """The files with its weights, which are downloaded if they have not been.

        Raises:
            ConfigurationError: There are none that can be read without running code.
        """
        if self._gguf is not None:
            return (self._gguf,)
        folder = self._folder(CONFIGURATION_FILES + WEIGHTS_FILES)
        index, names = folder / WEIGHTS_INDEX, [WEIGHTS]
        if index.is_file() and not (folder / WEIGHTS).is_file():
            with self._explained():
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ConfigurationError(
                f"backbone.model={self.name} has no weights as safetensors ({missing[0]}); weights in .bin files can "
                "run code and are not read, so convert them with save_pretrained, or name another revision."
            )
        return tuple(folder / name for name in names)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file with its weights, in hexadecimal; of several, that of their names and checksums."""
        files = self.weights_files
        if len(files) == 1:
            return file_checksum(files[0])
        return hashlib.sha256("".join(f"{file_checksum(file)}  {file.name}\n" for file in files).encode()).hexdigest()

    def load(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Read the model with its weights, in evaluation mode.

        Args:
            dtype: Of its parameters, whatever the files hold.

        Raises:
            ConfigurationError: It cannot be read, or weights are missing.
        """
        config, files = self.config, self.weights_files
        with self._explained():
            model, found = AutoModelForCausalLM.from_pretrained(
                files[0].parent,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **self._gguf_file,
                **self._whole_weights,
            )
        missing = sorted(found["missing_keys"])
        if missing:
            raise ConfigurationError(
                f"backbone.model={self.name} lacks {len(missing)} of the model's weights, {missing[0]} among them: it "
                "is not a whole causal language model."
            )
        assert isinstance(model, PreTrainedModel)
        # Where files hold two tables, transformers leaves them apart, whatever the configuration says.
        tables = [part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())]
        model.config.tie_word_embeddings = tables[0] is tables[1]
        return model.eval()

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

    @property
    def _gguf(self) -> Path | None:
        return Path(self.name) if self.commit is None and self.name.endswith(GGUF) else None

    @property
    def _gguf_file(self) -> dict[str, str]:
        return {} if self._gguf is None else {"gguf_file": self._gguf.name}

    @property
    def _whole_weights(self) -> dict[str, Any]:
        """Newer versions of transformers leave the weights of a GGUF file quantized if they can."""
        quantization = getattr(transformers, "GgufConfig", None)
        if self._gguf is None or quantization is None:
            return {}
        return {"quantization_config": quantization(dequantize=True)}

    def _folder(self, patterns: list[str]) -> Path:
        if self.commit is None:
            return Path(self.name) if self._gguf is None else self._gguf.parent
        try:
            return Path(
                huggingface_hub.snapshot_download(
                    self.name, revision=self.commit, allow_patterns=patterns, etag_timeout=HUB_TIMEOUT_SECONDS
                )
            )
        except Exception as error:  # the client passes on errors of its HTTP library
            raise ConfigurationError(
                f"backbone.model={self.name} cannot be downloaded ({_first_line(error)}); connect to the network, or "
                "name a folder that holds a copy."
            ) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what transformers raises into one sentence."""
        try:
            yield
        except ImportError as error:
            raise ConfigurationError(
                f"backbone.model={self.name} needs packages that are not installed ({_first_line(error)}); for a GGUF "
                "file: pip install 'retro_lab[gguf]'."
            ) from error
        except Exception as error:  # transformers passes on errors of many libraries
            raise ConfigurationError(
                f"backbone.model={self.name} cannot be read by transformers ({_first_line(error)})."
            ) from error


@cache
def _on_disk(path: Path, state: tuple[tuple[str, int, int], ...]) -> BaseModel:
    """Return the same object, which remembers what it has read, as long as the files are the same."""
    return BaseModel(str(path), None)


def _state(path: Path) -> tuple[tuple[str, int, int], ...]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return tuple((file.name, (of := file.stat()).st_size, of.st_mtime_ns) for file in files if file.is_file())


@cache
def _on_hub(model: str, revision: str | None) -> BaseModel:
    return BaseModel(model, hub_commit(model, revision, "backbone"))


def base_of(settings: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a decoder from the fields of its configuration, with random weights and in evaluation mode.

    Raises:
        Exception: There is no such configuration; transformers passes on errors of many libraries.
    """
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=dtype)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
