"""Texts that a trained model writes: from prompts to text, and what was retrieved on the way."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from tokenizers.decoders import DecodeStream

from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.errors import ConfigurationError
from retro_lab.generation.decoder import Decoder, Drafter, Writing
from retro_lab.generation.retrieved import Found, Retrieve, given, searched
from retro_lab.generation.sampling import Sampling
from retro_lab.model.language_model import LanguageModel
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.live import LiveRetrieval

CONTEXT = 8
"""Tokens of a prompt that are decoded with what follows: some tokens are written differently at a text's beginning."""


class Finish(StrEnum):
    """Why a text ends."""

    stop = "stop"
    """A stop string came."""
    end = "end"
    """The model ended the document."""
    length = "length"
    """It has as many tokens as were asked for."""
    interrupted = "interrupted"
    """It was interrupted."""


@dataclass(frozen=True)
class Chunk:
    """Tokens that retrieved, and what they found. What follows them attends to it, and so does their last token."""

    start: int
    """Place of its first token in prompt and continuation, whose first token is the document marker."""
    stop: int
    """Place after its last token."""
    found: Found
    """Its neighbors."""


@dataclass(frozen=True)
class Generated:
    """A text that was written."""

    prompt: np.ndarray
    """int [T]: the document marker and the tokens of the prompt."""
    tokens: np.ndarray
    """int [n]: those that follow it, without the marker of a next document, and with those of a stop string."""
    text: str
    """What follows the prompt, up to a stop string."""
    finish: Finish
    chunks: tuple[Chunk, ...]
    """What retrieved, in the order of its ends. A chunk that ends with the last token has not retrieved yet."""
    proposed: int
    """Draft tokens that were verified."""
    accepted: int
    """Those of them that are in the text."""


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C while texts were written.

    Attributes:
        generated: The texts so far.
    """

    def __init__(self, generated: list[Generated]) -> None:
        """Keep what was written."""
        super().__init__("Interrupted; this is what was written until then.")
        self.generated = generated


class Generator:
    """Continues prompts, with live retrieval or without."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: DocumentTokenizer,
        *,
        live: LiveRetrieval | None,
        value: Value,
        k: int,
        length: int,
        batch_size: int = 8,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Write with `model` on its device.

        Args:
            model: In evaluation mode.
            tokenizer: Of the model.
            live: Finds neighbors; None for k = 0.
            value: What the model reads of a neighbor.
            k: Neighbors of each chunk; 0 turns retrieval off.
            length: Tokens of a sequence, whole chunks; of a longer text, the model reads the last half of it and more.
            batch_size: Texts that are written together.
            precision: Context of a forward pass.

        Raises:
            ConfigurationError: A model without chunked cross-attention is to retrieve.
        """
        assert (live is not None) == (k > 0)
        if k:
            _check_encoder(model, f"k={k}")
        self.tokenizer, self.length, self.batch_size = tokenizer, length, batch_size
        self._model, self._value, self._precision = model, value, precision
        self._search = searched(live, k, value) if live is not None else None

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[np.ndarray],
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        retrieve_every: int | None = None,
        neighbors: Sequence[str] | None = None,
        drafter: Callable[[], Drafter] | None = None,
        advance: Callable[[int], object] = lambda count: None,
    ) -> list[Generated]:
        """Continue prompts until their document ends, a stop string comes, or there are enough tokens.

        A text depends on its prompt, on its number among the prompts and on the settings, and not on what it is written
        together with, but for rounding.

        Args:
            prompts: The document marker and the tokens of each, int [T], as `DocumentTokenizer.encode` returns them.
            max_tokens: Most tokens to add to each.
            sampling: How tokens are chosen; None takes the most likely one.
            stop: Strings at the first of which a text ends; they may begin and end within tokens.
            retrieve_every: Tokens from one retrieval to the next, 1 to m; None retrieves at the end of each chunk.
            neighbors: Texts that every chunk retrieves in place of what a search finds; a text that is longer than a
                neighbor with its continuation is cut.
            drafter: Makes what proposes tokens of a text, which changes no text.
            advance: Told how many texts were finished.

        Raises:
            ConfigurationError: A number is out of its range, a stop string is empty, or neighbors are given to a model
                without chunked cross-attention.
            GenerationInterrupted: Ctrl-C; it has the texts so far.
        """
        sampling = sampling or Sampling()
        self._check(max_tokens, stop, retrieve_every)
        decoder = Decoder(
            self._model,
            sampling,
            self._retrieve(neighbors),
            length=self.length,
            retrieve_every=retrieve_every,
            precision=self._precision,
        )
        texts = [
            _Text(
                tokens=[int(token) for token in prompt],
                draws=sampling.draws(number),
                drafter=drafter() if drafter else None,
                tokenizer=self.tokenizer,
                most=max_tokens,
                stop=tuple(stop),
            )
            for number, prompt in enumerate(prompts)
        ]
        batch: list[_Text] = []
        longest_first = sorted(texts, key=lambda text: -len(text.tokens))
        try:
            for first in range(0, len(texts), self.batch_size):
                batch = longest_first[first : first + self.batch_size]
                decoder.write(batch)
                advance(len(batch))
        except KeyboardInterrupt as error:
            raise GenerationInterrupted([self._generated(text) for text in texts]) from error
        return [self._generated(text) for text in texts]

    def _retrieve(self, neighbors: Sequence[str] | None) -> Retrieve | None:
        if neighbors is None:
            return self._search
        _check_encoder(self._model, "neighbors")
        if not neighbors or any(not text for text in neighbors):
            raise ConfigurationError("neighbors has no text; name one or more, or leave it out.")
        return given(neighbors, self.tokenizer, self._value.length(self._model.chunk_length))

    def _check(self, max_tokens: int, stop: Sequence[str], retrieve_every: int | None) -> None:
        m = self._model.chunk_length
        if max_tokens < 0:
            raise ConfigurationError(f"max_tokens must be 0 or more, not {max_tokens}.")
        if isinstance(stop, str) or "" in stop:
            raise ConfigurationError("stop is a list of strings, none of which is empty.")
        if retrieve_every is not None and not 1 <= retrieve_every <= m:
            raise ConfigurationError(
                f"retrieve_every must be from 1 to {m}, the tokens of a chunk, not {retrieve_every}."
            )

    def _generated(self, text: "_Text") -> Generated:
        m, new = self._model.chunk_length, text.new
        if new and new[-1] == self.tokenizer.document_marker:
            new = new[:-1]
        context = text.tokens[max(0, text.prompt_length - CONTEXT) : text.prompt_length]
        pieces = self.tokenizer.pieces(np.array([*context, *new], np.int64))
        return Generated(
            prompt=np.array(text.tokens[: text.prompt_length], self.tokenizer.dtype),
            tokens=np.array(new, self.tokenizer.dtype),
            text="".join(pieces[len(context) :])[: text.cut],
            finish=text.finish,
            chunks=tuple(Chunk(end - m, end, found) for end, found in sorted(text.found.items())),
            proposed=text.proposed,
            accepted=text.accepted,
        )


class _Text(Writing):
    """A text with its stop strings."""

    def __init__(
        self,
        tokens: list[int],
        draws: np.random.Generator,
        drafter: Drafter | None,
        *,
        tokenizer: DocumentTokenizer,
        most: int,
        stop: tuple[str, ...],
    ) -> None:
        super().__init__(tokens, draws, drafter, ended=not most)
        self.prompt_length = len(tokens)
        self.finish = Finish.interrupted if most else Finish.length
        self.cut: int | None = None
        """Characters of the continuation before the stop string."""
        self._tokenizer, self._most, self._stop = tokenizer, most, stop
        self._written = ""
        self._longest_stop = max(map(len, stop), default=0)
        self._stream = DecodeStream(skip_special_tokens=False)
        for token in tokens[-CONTEXT:] if stop else ():
            self._step(token)

    @property
    def new(self) -> list[int]:
        """Tokens after the prompt."""
        return self.tokens[self.prompt_length :]

    def ends(self) -> bool:
        """Return whether the last token ends the text, and note down why."""
        token = self.tokens[-1]
        if token == self._tokenizer.document_marker:
            self.finish = Finish.end
            return True
        if self._stop and self._stops(self._step(token)):
            self.finish = Finish.stop
            return True
        if len(self.tokens) - self.prompt_length >= self._most:
            self.finish = Finish.length
            return True
        return False

    def _stops(self, piece: str) -> bool:
        """Add a piece of text, and return whether a stop string ends in it."""
        before = max(0, len(self._written) - self._longest_stop)
        self._written += piece
        places = [place for stop in self._stop if (place := self._written.find(stop, before)) >= 0]
        self.cut = min(places, default=None)
        return bool(places)

    def _step(self, token: int) -> str:
        if token == self._tokenizer.document_marker:
            return ""
        return self._stream.step(self._tokenizer.tokenizer, token) or ""


def _check_encoder(model: LanguageModel, given: str) -> None:
    """Refuse neighbors for a model that cannot read any.

    Raises:
        ConfigurationError: It has no encoder.
    """
    if model.encoder is None:
        raise ConfigurationError(
            f"A baseline has no chunked cross-attention and reads no neighbors, so leave out {given} or take a RETRO."
        )
