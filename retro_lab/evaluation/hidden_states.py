"""The `hidden_states` stage: what a trained baseline knows before each token of a text, and what it makes of the token.

For kNN-LM (Khandelwal et al. 2020) a token's context is stood for by one hidden state. Here it is the last one, as the
model norms it before the read-out; the paper says only that it has the model's width (Borgeaud et al. 2022, Sec. 4.1).
Contexts are those of the sliding windows that the model is scored with.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retro_lab import ranks
from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import DivergenceError
from retro_lab.evaluation.windows import WindowBatch, Windows
from retro_lab.retrieval.embeddings import EMBEDDINGS_NAME, Embeddings
from retro_lab.retrieval.sequences import Sequences, documents_of, to_int64
from retro_lab.runs.trained_model import SETTINGS_NAME, open_model

TARGETS_NAME, NATS_NAME = "targets.npy", "nats.npy"
SHARD_TOKENS = 2**17
"""Most tokens of a shard, about: 256 MiB of states of width 1,024."""
WEIGHTS = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
PRODUCTS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Types of numbers in Lightning's precisions, where they are not float32."""


@dataclass(frozen=True)
class Reader:
    """A trained model, and how it reads a text: as it does where it is scored."""

    folder: Path
    """Of the model."""
    width: int
    """Of a hidden state."""
    precision: str
    """Lightning's full name."""
    sequence_length: int
    """Tokens of a window."""
    stride: int
    """Tokens between windows."""
    batch_size: int
    """Windows read at once, which decides how results are rounded."""
    document_masks: bool
    """Whether the model masks other documents."""

    def windows(self, store: TokenStore, documents: int) -> Windows:
        """Cut the first `documents` documents of a text into windows."""
        read = Sequences(store, None, self.sequence_length, with_documents=self.document_masks)
        return Windows(read, self.stride, self.batch_size, 0, float(store.document_length[:documents].sum()))

    def settings(self) -> Mapping[str, Any]:
        """Return what decides the states besides the text; the model's settings hold the checksum of its weights."""
        settings = {name: value for name, value in vars(self).items() if name != "folder"}
        return settings | {"model": file_checksum(self.folder / SETTINGS_NAME)}


@dataclass(frozen=True)
class HiddenStatesFacts:
    """Facts of a `hidden_states` artifact."""

    width: int
    starts: list[int]
    """First token of each shard, and the number of tokens at the end."""
    norm_spread: float
    """Standard deviation of the squared norms of the states."""


class HiddenStatesStage(Stage):
    """Read the first documents of a text with a trained model; a shard is a number of batches of windows."""

    name = "hidden_states"
    unit = "batches"

    def __init__(self, reader: Reader, store: TokenStore, documents: int) -> None:
        """Read the first `documents` documents of `store`, each token once."""
        self.reader = reader
        self.store = store
        self.documents = documents
        self.shard_batches = max(1, SHARD_TOKENS // (reader.stride * reader.batch_size))

    def settings(self) -> Mapping[str, Any]:
        """Return the model, how it reads, how many documents, and the size of a shard."""
        return {**self.reader.settings(), "documents": self.documents, "shard_batches": self.shard_batches}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the tokens."""
        return {"tokens": self.store.artifact}

    def libraries(self) -> Mapping[str, int]:
        """Return PyTorch; processors round differently even with the same version."""
        return {"torch": 1}

    def shard_sizes(self) -> Sequence[int]:
        """Return the batches in each shard."""
        batches = len(self.reader.windows(self.store, self.documents))
        return [min(self.shard_batches, batches - first) for first in range(0, batches, self.shard_batches)]

    def prepare(self) -> AbstractContextManager[Any]:
        """Load the model before the first shard, onto the GPU of the rank if there is one."""
        self._windows = self.reader.windows(self.store, self.documents)
        self._device = torch.device("cpu")
        if torch.cuda.is_available():
            self._device = torch.device("cuda", ranks.current().local_rank % torch.cuda.device_count())
        self._model = open_model(self.reader.folder).model.to(self._device, WEIGHTS.get(self.reader.precision))
        return nullcontext()

    def __getstate__(self) -> dict[str, Any]:
        """Leave to each process what it prepares itself."""
        own = ("_windows", "_device", "_model")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write the states before the tokens of a shard, the tokens, and the model's cross-entropy of each.

        The tokens are those that the windows score, in the order of the text: `embeddings.npy` is float16 [T, d],
        `targets.npy` int [T] and `nats.npy` float32 [T].

        Raises:
            DivergenceError: A state is not finite, or too large for float16.
        """
        first = shard * self.shard_batches
        parts = []
        for batch in range(first, min(first + self.shard_batches, len(self._windows))):
            parts.append(self._read(self._windows[batch]))
            advance(1)
        states, targets, nats = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if not np.isfinite(states).all():
            raise DivergenceError(
                f"The hidden states of {self.reader.folder} are not finite numbers of 16 bits, so kNN-LM cannot search "
                "them: the model diverged in training. Leave kNN-LM out (evaluation.knn_lm.k=0) or train it again with "
                "a lower optimizer.lr under another name (name=NAME)."
            )
        for name, array in ((EMBEDDINGS_NAME, states), (TARGETS_NAME, targets), (NATS_NAME, nats)):
            np.save(folder / name, array, allow_pickle=False)
        norms = (states.astype(np.float32) ** 2).sum(1, dtype=np.float64)
        return {
            "tokens": len(targets),
            "norms": float(norms.sum()),
            "deviations": float(((norms - norms.mean()) ** 2).sum()) if len(norms) else 0.0,
        }

    def _read(self, windows: WindowBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return states, targets and nats of the targets that a batch of windows scores."""
        batch = to_int64({name: tensor.to(self._device) for name, tensor in windows["batch"].items()})  # type: ignore
        products = PRODUCTS.get(self.reader.precision)
        mask, model = batch["mask"], self._model
        with torch.no_grad(), torch.autocast(self._device.type, products, enabled=products is not None):
            hidden: Tensor = model(batch["tokens"], documents=documents_of(batch))[mask]
            nats = model.target_losses(hidden, batch["targets"][mask])
        targets = windows["batch"]["targets"][windows["batch"]["mask"]]
        return hidden.to("cpu", torch.float16).numpy(), targets.numpy(), nats.to("cpu", torch.float32).numpy()

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Record where shards start, and how far the squared norms of states spread."""
        starts = [0, *accumulate(fact["tokens"] for fact in facts)]
        total = max(1, starts[-1])
        mean = sum(fact["norms"] for fact in facts) / total
        within = sum(fact["deviations"] for fact in facts)
        between = sum(fact["tokens"] * (fact["norms"] / fact["tokens"] - mean) ** 2 for fact in facts if fact["tokens"])
        return asdict(HiddenStatesFacts(self.reader.width, starts, ((within + between) / total) ** 0.5))


class HiddenStates(Embeddings):
    """Read-only view of a `hidden_states` artifact: T tokens of a text in its order, and the state before each."""

    def __init__(self, artifact: Artifact) -> None:
        """Open `artifact`; states are read on demand.

        Raises:
            ArtifactError: The manifest lacks facts of hidden states.
        """
        self.artifact = artifact
        facts = artifact.read_facts(HiddenStatesFacts)
        self.chunks, self.width, self._starts = facts.starts[-1], facts.width, np.array(facts.starts)
        self.norm_spread = facts.norm_spread

    @property
    def tokens(self) -> np.ndarray:
        """The token that each state comes before, int [T]."""
        return self._joined(TARGETS_NAME)

    @property
    def nats(self) -> np.ndarray:
        """The model's cross-entropy of each token, float32 [T]."""
        return self._joined(NATS_NAME)

    def _joined(self, name: str) -> np.ndarray:
        return np.concatenate([self.artifact.array(name, shard) for shard in range(len(self._starts) - 1)])
