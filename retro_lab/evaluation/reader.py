"""A trained model that reads texts which are in no token store, such as the questions of a benchmark.

A text is a document: its marker, then its tokens, in chunks that begin with the marker. What is longer than a sequence
is cut on the left at the end of a chunk, so chunks, and what they retrieve, stay the same:

    text       |marker c0|c1      |c2      |c3   ?
    sequence             [c1      |c2      |c3   ]?      for a length of three chunks
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from retro_lab import console
from retro_lab.model.kernels.cross_entropy import token_slices
from retro_lab.model.language_model import LanguageModel
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.live import LiveRetrieval


@dataclass(frozen=True)
class Scored:
    """A text of which tokens are scored."""

    tokens: np.ndarray
    """int [T]: the document marker and the text."""
    first: int
    """Place of the first scored token, 1 or more."""


class Likelihood(NamedTuple):
    """How well a model predicts the scored tokens of a text."""

    nats: float
    """Their summed cross-entropy."""
    greedy: bool
    """Whether each of them is the most likely token."""


class _Window(NamedTuple):
    """Tokens from `start` up to `stop` as inputs, of which those that predict a token from `first` on are scored."""

    text: int
    start: int
    stop: int
    first: int


class TextReader:
    """Scores texts, with live retrieval or without."""

    def __init__(
        self,
        model: LanguageModel,
        live: LiveRetrieval | None,
        value: Value,
        *,
        k: int,
        marker: int,
        length: int,
        stride: int,
        batch_size: int,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Read with `model` on its device.

        Args:
            model: In evaluation mode.
            live: Finds neighbors; None for k = 0.
            value: What the model reads of a neighbor.
            k: Neighbors of each chunk; 0 turns retrieval off.
            marker: Id of the document marker.
            length: Tokens of a sequence, whole chunks.
            stride: Tokens between the windows over scored tokens that do not fit into one sequence, whole chunks.
            batch_size: Sequences read at once.
            precision: Context of a forward pass.
        """
        assert (live is not None) == (k > 0)
        self.marker, self.length = marker, length
        self._model, self._live, self._value, self._k = model, live, value, k
        self._stride, self._batch_size, self._precision = stride, batch_size, precision
        self._device = next(model.parameters()).device
        self._found: dict[bytes, np.ndarray] = {}
        """Neighbors of chunks that were searched for: the questions of a task have their examples in common."""

    @torch.no_grad()
    def likelihoods(self, texts: Sequence[Scored], *, greedy: bool = True) -> list[Likelihood]:
        """Score texts.

        What is scored is predicted from as much of the text before it as a sequence holds. If it does not fit into one
        sequence, windows slide over it as in `retro_lab.evaluation.windows`.

        Args:
            texts: In any order; those of similar length are read together.
            greedy: Whether to find out if the scored tokens are the most likely ones; otherwise False is returned.
        """
        nats, hits = np.zeros(len(texts)), np.full(len(texts), greedy)
        windows = [window for number, text in enumerate(texts) for window in self._windows(number, text)]
        windows.sort(key=lambda window: window.start - window.stop)
        self._retrieve(chunk for window in windows for chunk in self._chunks(_inputs(texts, window)))
        with console.progress("scoring", "sequences", len(windows)) as advance:
            for first in range(0, len(windows), self._batch_size):
                batch = windows[first : first + self._batch_size]
                hidden = self._hidden([_inputs(texts, window) for window in batch])
                for row, window in enumerate(batch):
                    states = hidden[row, window.first - window.start - 1 : window.stop - window.start]
                    wanted = texts[window.text].tokens[window.first : window.stop + 1]
                    targets = torch.from_numpy(wanted.astype(np.int64)).to(self._device)
                    nats[window.text] += float(self._model.target_losses(states, targets).double().sum())
                    if greedy and hits[window.text]:
                        hits[window.text] = self._are_likeliest(states, targets)
                advance(len(batch))
        return [Likelihood(float(value), bool(hit)) for value, hit in zip(nats, hits, strict=True)]

    def _windows(self, number: int, text: Scored) -> Iterator[_Window]:
        """Cut a text into windows: each scored token is the target of exactly one."""
        count = len(text.tokens) - 1
        if text.first > count:
            return
        start = cut(count, self.length, self._model.chunk_length)
        if start < text.first:
            yield _Window(number, start, count, text.first)
            return
        scored = 1
        for start in range(0, max(1, count - self.length + self._stride), self._stride):
            stop = min(count, start + self.length)
            if stop >= text.first:
                yield _Window(number, start, stop, max(scored, text.first))
            scored = stop + 1

    def _chunks(self, tokens: np.ndarray) -> np.ndarray:
        """Return the complete chunks of the inputs of a sequence, [l, m], which are those that retrieve."""
        m = self._model.chunk_length
        return tokens[: len(tokens) // m * m if self._k else 0].reshape(-1, m).astype(np.int64)

    def _retrieve(self, chunks: Iterable[np.ndarray]) -> None:
        """Search for the neighbors of chunks that were not yet searched for."""
        if self._live is None:
            return
        missing = {key: chunk for chunk in chunks if (key := chunk.tobytes()) not in self._found}
        ids, _ = self._live.search(list(missing.values()))
        self._found.update(zip(missing, ids[:, : self._k], strict=True))

    def _hidden(self, inputs: Sequence[np.ndarray]) -> Tensor:
        """Return the final hidden states of sequences of tokens, [B, N, D], padded on the right."""
        longest = max(len(tokens) for tokens in inputs)
        tokens = torch.full((len(inputs), longest), self.marker)
        for row, ids in enumerate(inputs):
            tokens[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        neighbors, lengths = self._neighbors(inputs, longest // self._model.chunk_length)
        documents = torch.zeros_like(tokens).to(self._device) if self._model.document_masks else None
        with self._precision():
            hidden: Tensor = self._model(tokens.to(self._device), neighbors, lengths, documents)
        return hidden

    def _neighbors(self, inputs: Sequence[np.ndarray], chunks: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the neighbors of the complete chunks of sequences, and their lengths: 0 in the padding."""
        if self._live is None or not chunks:
            return None, None
        r = self._value.length(self._model.chunk_length)
        neighbors = torch.zeros(len(inputs), chunks, self._k, r, dtype=torch.int64)
        lengths = torch.zeros(len(inputs), chunks, self._k, dtype=torch.int64)
        for row, tokens in enumerate(inputs):
            found = [self._found[chunk.tobytes()] for chunk in self._chunks(tokens)]
            if found:
                read, real = self._live.read(np.stack(found), self._k, self._value)
                neighbors[row, : len(found)] = torch.from_numpy(read.astype(np.int64))
                lengths[row, : len(found)] = torch.from_numpy(real)
        return neighbors.to(self._device), lengths.to(self._device)

    def _are_likeliest(self, states: Tensor, targets: Tensor) -> bool:
        """Return whether the targets [T] are the most likely tokens after the hidden states [T, D]."""
        return all(
            bool((self._model.logits(states[part]).argmax(-1) == targets[part]).all())
            for part in token_slices(states, self._model.readout_weight)
        )


def cut(count: int, length: int, chunk_length: int) -> int:
    """Return how many of `count` tokens to leave out on the left, whole chunks, so that at most `length` are left."""
    return max(0, -(-(count - length) // chunk_length)) * chunk_length


def _inputs(texts: Sequence[Scored], window: _Window) -> np.ndarray:
    return texts[window.text].tokens[window.start : window.stop]
