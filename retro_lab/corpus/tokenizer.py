"""Tokenizers: a byte-level BPE trained on the corpus, or any pretrained one.

Both end as one `tokenizer.json` of the `tokenizers` library, so that nothing after needs to know which it was. Every
document is encoded as one document marker followed by its text. The marker gives the first token of the text
something to be predicted from, and fills the last chunk of a document; it is never itself predicted.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.errors import ConfigurationError

TRAINED_MARKER = "<|endoftext|>"
SMALLEST_VOCABULARY = 257
MARKER_FILE = "document_marker.json"


@dataclass(frozen=True)
class DocumentTokenizer:
    """A tokenizer and the id of its document marker."""

    tokenizer: Tokenizer
    document_marker: int

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, the marker's among them."""
        return max(self.tokenizer.get_vocab_size(with_added_tokens=True), self.document_marker + 1)

    @property
    def dtype(self) -> np.dtype:
        """Smallest unsigned integer type that holds every id; wraps nothing around (int16 has, elsewhere)."""
        return np.dtype(np.uint16 if self.vocabulary_size <= 2**16 else np.uint32)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode documents: for each, the marker and then the text's ids, [1 + tokens]."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([self.document_marker, *encoding.ids], self.dtype) for encoding in encodings]

    def decode(self, tokens: Iterable[np.ndarray]) -> list[str]:
        """Decode rows of ids to text, leaving special tokens out; half a character becomes U+FFFD."""
        return self.tokenizer.decode_batch([row.tolist() for row in tokens], skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and the marker's id into `folder`."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / MARKER_FILE).write_text(json.dumps(self.document_marker), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "DocumentTokenizer":
        """Read what `save` wrote."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(tokenizer, json.loads((folder / MARKER_FILE).read_text(encoding="utf-8")))


class TokenizerRecipe(ABC):
    """How to get a tokenizer."""

    learns: ClassVar[bool]
    """Whether `make` reads the texts it is given."""
    training_bytes: float = 0
    """UTF-8 bytes of text that `make` wants."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that decides the tokenizer besides the texts, as JSON-able values."""

    @abstractmethod
    def make(self, texts: Iterable[str]) -> DocumentTokenizer:
        """Train or fetch the tokenizer."""


class ByteBPE(TokenizerRecipe):
    """Byte-level byte-pair encoding, trained on the corpus: encodes any text and loses nothing."""

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
        """Kind, vocabulary and training bytes."""
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
        # The marker must not be found in text: a document about tokenizers would otherwise hold false markers.
        tokenizer.encode_special_tokens = True
        marker = tokenizer.token_to_id(TRAINED_MARKER)
        assert marker is not None
        return DocumentTokenizer(tokenizer, marker)


class PretrainedTokenizer(TokenizerRecipe):
    """A tokenizer of the Hugging Face hub or of a folder on disk."""

    learns = False

    def __init__(self, name: str, revision: str | None = None) -> None:
        """Use the tokenizer `name`, at `revision` of the hub if given."""
        self.name = name
        self.revision = revision

    def identity(self) -> dict[str, Any]:
        """Name and revision on the hub, or the checksum of the file on disk."""
        file = Path(self.name) / "tokenizer.json"
        if file.is_file():
            return {"kind": "pretrained", "sha256": file_checksum(file)}
        return {"kind": "pretrained", "name": self.name, "revision": self.revision}

    def make(self, texts: Iterable[str]) -> DocumentTokenizer:
        """Load the tokenizer; its own beginning- or end-of-text token becomes the document marker.

        Raises:
            ConfigurationError: There is no such tokenizer, or it has no fast form or no token for the marker.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            pretrained = AutoTokenizer.from_pretrained(self.name, revision=self.revision)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"tokenizer.name={self.name} is neither a folder with a tokenizer nor one that the hub gives out "
                f"({str(error).splitlines()[0]})."
            ) from error
        if not isinstance(pretrained, PreTrainedTokenizerFast):
            raise ConfigurationError(f"tokenizer.name={self.name} has no tokenizer.json; choose one with a fast form.")
        candidates = (pretrained.bos_token_id, pretrained.eos_token_id, pretrained.cls_token_id)
        marker = next((candidate for candidate in candidates if candidate is not None), None)
        if marker is None:
            raise ConfigurationError(
                f"tokenizer.name={self.name} has no beginning- or end-of-text token to mark documents with."
            )
        backend = pretrained.backend_tokenizer
        backend.encode_special_tokens = True
        return DocumentTokenizer(backend, int(marker))
