"""Tokenizers: the one that encodes documents, and a byte-level BPE trained on the corpus.

Every tokenizer becomes a `tokenizer.json` of the `tokenizers` library, so that later stages treat all alike. A document
is encoded as one document marker followed by its text. The first token of the text is predicted from the marker, which
also fills up the last chunk of a document; the marker itself is never predicted, and no text encodes to it.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.decoders import DecodeStream

from retro_lab.errors import ConfigurationError

TRAINED_MARKER = "<|endoftext|>"
SMALLEST_VOCABULARY = 257
TOKENIZER_NAME, MARKER_NAME = "tokenizer.json", "document_marker.json"
ONE_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A token that stands for a single byte, where a tokenizer falls back on bytes."""


def plain_text(tokenizer: Tokenizer) -> Tokenizer:
    """Make `tokenizer` encode whole texts and treat special tokens in them as text; returns it.

    The library does not save this setting in `tokenizer.json`, so this is called wherever a tokenizer is loaded.
    """
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@dataclass(frozen=True)
class DocumentTokenizer:
    """A tokenizer and the id of its document marker."""

    tokenizer: Tokenizer
    document_marker: int

    @classmethod
    def adapt(cls, tokenizer: Tokenizer, marker: str | None) -> "DocumentTokenizer":
        """Reduce a tokenizer to encoding text, and give it a document marker.

        Added tokens no longer absorb the spaces around them, and merges are not dropped at random.

        Args:
            tokenizer: Any tokenizer; it is not changed.
            marker: Token that marks documents. A new id, after all others, is used if it is None, or if some text could
                encode to that token.

        Raises:
            ConfigurationError: The tokenizer has no such token.
        """
        content = json.loads(tokenizer.to_str())
        for token in content["added_tokens"]:
            token["lstrip"] = token["rstrip"] = False
            token["special"] = token["special"] or token["content"] == marker
        if "dropout" in content["model"]:
            content["model"]["dropout"] = None
        adapted = plain_text(Tokenizer.from_str(json.dumps(content)))
        if marker is not None and adapted.token_to_id(marker) is None:
            raise ConfigurationError(f"The tokenizer has no token {marker!r} to mark documents with.")
        if marker is None or _can_be_text(marker, content):
            return cls(adapted, _ids(adapted))
        identifier = adapted.token_to_id(marker)
        assert identifier is not None
        return cls(adapted, identifier)

    @cached_property
    def vocabulary_size(self) -> int:
        """Number of token ids, including the marker's."""
        return max(_ids(self.tokenizer), self.document_marker + 1)

    @property
    def dtype(self) -> np.dtype:
        """Smallest unsigned integer type that holds every id."""
        return np.dtype(np.uint16 if self.vocabulary_size <= 2**16 else np.uint32)

    @property
    def checksum(self) -> str:
        """SHA-256, in hexadecimal, of everything that decides the ids of a text."""
        return hashlib.sha256(f"{self.document_marker} {self.tokenizer.to_str()}".encode()).hexdigest()

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of text that each token stands for, int64 [vocabulary size]; 0 for the document marker.

        They are exact for a byte-level tokenizer, whose tokens have one character for each byte, whether the bytes are
        whole characters of text or not. Other tokenizers write some tokens differently from place to place (spaces at
        the start of a text); theirs are what a token adds after another one of its kind.
        """
        sizes = np.zeros(self.vocabulary_size, np.int64)
        content = json.loads(self.tokenizer.to_str())
        added = {token["id"]: token["content"] for token in content["added_tokens"]}
        vocabulary = {i: token for token, i in self.tokenizer.get_vocab(with_added_tokens=True).items()}
        ids = sorted(vocabulary.keys() - added.keys())
        decoder = content["decoder"] or {}
        if "ByteLevel" in {step["type"] for step in decoder.get("decoders", [decoder]) if step}:
            sizes[ids] = [len(vocabulary[i]) for i in ids]
        elif ids:
            one, two = (
                self.tokenizer.decode_batch([[i] * count for i in ids], skip_special_tokens=False) for count in (1, 2)
            )
            sizes[ids] = [max(0, _size(both) - _size(first)) for first, both in zip(one, two, strict=True)]
            if content["model"].get("byte_fallback"):
                sizes[[i for i in ids if ONE_BYTE.fullmatch(vocabulary[i])]] = 1
        for i, text in added.items():
            sizes[i] = _size(text)
        sizes[self.document_marker] = 0
        return sizes

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode documents, each as the marker followed by the text's ids, [1 + tokens]."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([self.document_marker, *encoding.ids], self.dtype) for encoding in encodings]

    def token_at(self, text: str, start: int) -> int:
        """Return which token of a document is the first that stands for text from the character `start` on.

        Args:
            text: Of the document.
            start: Place of a character in it.

        Returns:
            Place among the ids that `encode` returns, from 1 on; their number if no token stands for that text.
        """
        encoding = self._without_trimming.encode(text, add_special_tokens=False)
        ends = [end for _, end in encoding.offsets]
        return 1 + next((place for place, end in enumerate(ends) if end > start), len(ends))

    @cached_property
    def _without_trimming(self) -> Tokenizer:
        """The same tokenizer, but the places it gives include the spaces of tokens, which post-processors leave out."""
        content = json.loads(self.tokenizer.to_str())
        return plain_text(Tokenizer.from_str(json.dumps(content | {"post_processor": None})))

    def decode(self, tokens: Iterable[np.ndarray]) -> list[str]:
        """Decode rows of ids to text without the marker; an incomplete character becomes U+FFFD."""
        # Other special tokens stay: `encode` only returns them for text.
        rows = [row[row != self.document_marker].tolist() for row in tokens]
        return self.tokenizer.decode_batch(rows, skip_special_tokens=False)

    def pieces(self, tokens: np.ndarray) -> list[str]:
        """Return what each token of a text adds to it; those of a whole text are together what `decode` returns.

        A character that several tokens share comes with the last of them, and the marker adds nothing.
        """
        stream, pieces = DecodeStream(skip_special_tokens=False), []
        for token in tokens.tolist():
            pieces.append("" if token == self.document_marker else stream.step(self.tokenizer, token) or "")
        if pieces:  # a character that is not complete at the end
            [text], found = self.decode([tokens]), "".join(pieces)
            pieces[-1] += text[len(found) :] if text.startswith(found) else ""
        return pieces

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and the marker's id into `folder`."""
        self.tokenizer.save(str(folder / TOKENIZER_NAME))
        (folder / MARKER_NAME).write_text(json.dumps(self.document_marker), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "DocumentTokenizer":
        """Read what `save` wrote."""
        tokenizer = plain_text(Tokenizer.from_file(str(folder / TOKENIZER_NAME)))
        return cls(tokenizer, json.loads((folder / MARKER_NAME).read_text(encoding="utf-8")))


def _size(text: str) -> int:
    return len(text.encode())


def _ids(tokenizer: Tokenizer) -> int:
    """Return the number after the largest id; ids may have gaps, so it can exceed the number of tokens."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def _can_be_text(token: str, content: dict[str, Any]) -> bool:
    """Return whether the model of a `tokenizer.json` can make `token` out of text; True if that is uncertain."""
    model = content["model"]
    vocabulary = model["vocab"]
    if token not in (vocabulary if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}):
        return False
    if model["type"] != "BPE" or model.get("ignore_merges"):
        return True
    # A BPE makes single characters, and what it has merges for.
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    if len(token.removeprefix(prefix).removesuffix(suffix)) <= 1:
        return True
    return any(left + right.removeprefix(prefix) == token for left, right in model["merges"])


class TokenizerRecipe(ABC):
    """How to get a tokenizer."""

    learns: ClassVar[bool]
    """Whether `make` reads the texts it is given."""
    training_bytes: float = 0
    """UTF-8 bytes of text that `make` reads."""
    lossy: bool = False
    """Whether the tokens of a text may decode to another text."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return everything besides the texts that decides the tokenizer, as JSON-able values."""

    @abstractmethod
    def make(self, texts: Iterable[str]) -> DocumentTokenizer:
        """Train or fetch the tokenizer."""


class ByteBPE(TokenizerRecipe):
    """Byte-level byte-pair encoding, trained on the corpus; it encodes any text without loss."""

    learns = True

    def __init__(self, vocabulary_size: int, training_bytes: float) -> None:
        """Learn a vocabulary of `vocabulary_size` ids from `training_bytes` of text.

        Raises:
            ConfigurationError: The vocabulary is smaller than the 256 bytes and the marker.
        """
        if vocabulary_size < SMALLEST_VOCABULARY:
            raise ConfigurationError(
                f"tokenizer.vocabulary_size={vocabulary_size} is below {SMALLEST_VOCABULARY}: "
                "256 bytes and the document marker."
            )
        self.vocabulary_size = vocabulary_size
        self.training_bytes = training_bytes

    def identity(self) -> dict[str, Any]:
        """Return kind, vocabulary and training bytes."""
        return {
            "kind": "byte_bpe",
            "vocabulary_size": self.vocabulary_size,
            "training_bytes": self.training_bytes,
        }

    def make(self, texts: Iterable[str]) -> DocumentTokenizer:
        """Train on `texts`."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary_size,
            special_tokens=[TRAINED_MARKER],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return DocumentTokenizer.adapt(tokenizer, TRAINED_MARKER)
