"""Pretrained tokenizers, from the Hugging Face hub, a folder, a `tokenizer.json`, or the .gguf file of a model."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from retro_lab.corpus.hub_models import hub_commit, tokenizer_folder
from retro_lab.corpus.tokenizer import TOKENIZER_NAME, DocumentTokenizer, TokenizerRecipe
from retro_lab.errors import ConfigurationError

SENTENCEPIECE_SUFFIXES = (".model", ".spm")
GGUF = ".gguf"


class PretrainedTokenizer(TokenizerRecipe):
    """A tokenizer from the Hugging Face hub or from disk."""

    learns = False

    def __init__(self, name: str, revision: str | None = None, marker: str | None = None, lossy: bool = False) -> None:
        """Use the tokenizer `name`; nothing is read yet.

        Args:
            name: Name on the hub, a folder, a file in the form of `tokenizer.json`, or a .gguf file.
            revision: Commit, tag or branch on the hub.
            marker: Token that marks documents. None takes the tokenizer's own beginning- or end-of-text token, or a
                new id if it has none; a token that text can encode to is replaced by a new id too.
            lossy: Whether the tokens of a text may decode to another text.
        """
        self.name = name
        self.revision = revision
        self.marker = marker
        self.lossy = lossy
        path = Path(name).expanduser()
        self._path = path if path.exists() else None

    def identity(self) -> dict[str, Any]:
        """Return name and commit on the hub, or the checksum of a tokenizer on disk.

        Raises:
            ConfigurationError: The tokenizer does not exist or cannot be used.
        """
        if self._path is not None:
            return {"kind": "pretrained", "sha256": self._loaded.checksum}
        return {"kind": "pretrained", "name": self.name, "commit": self._commit, "marker": self.marker}

    def make(self, texts: Iterable[str]) -> DocumentTokenizer:
        """Load the tokenizer.

        Raises:
            ConfigurationError: The tokenizer does not exist, has no fast form, or lacks the token for the marker.
        """
        return self._loaded

    @cached_property
    def _commit(self) -> str:
        return hub_commit(self.name, self.revision, "tokenizer")

    @cached_property
    def _loaded(self) -> DocumentTokenizer:
        pretrained = self._load()
        own = (pretrained.bos_token, pretrained.eos_token, pretrained.cls_token)
        marker = self.marker or next((str(token) for token in own if token is not None), None)
        try:
            return DocumentTokenizer.adapt(pretrained.backend_tokenizer, marker)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"tokenizer.name={self.name} has no token {marker!r}; set tokenizer.marker to one that it has."
            ) from error

    def _load(self) -> PreTrainedTokenizerFast:
        path = self._path
        try:
            if path is None:
                pretrained = AutoTokenizer.from_pretrained(str(tokenizer_folder(self.name, self._commit)))
            elif path.is_dir():
                pretrained = AutoTokenizer.from_pretrained(str(path))
            elif path.name == TOKENIZER_NAME:  # other files in its folder configure it
                pretrained = AutoTokenizer.from_pretrained(str(path.parent))
            elif path.suffix == GGUF:
                pretrained = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
            else:
                pretrained = PreTrainedTokenizerFast(tokenizer_file=str(path))
        except ConfigurationError:
            raise
        except Exception as error:  # transformers passes on errors of many libraries, even plain `Exception`
            raise ConfigurationError(self._refusal(error)) from error
        if not isinstance(pretrained, PreTrainedTokenizerFast):
            raise ConfigurationError(f"tokenizer.name={self.name} has no tokenizer.json; choose one with a fast form.")
        return pretrained

    def _refusal(self, error: Exception) -> str:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if self._path is None:
            return f"The tokenizer {self.name} of the hub cannot be loaded ({reason}); check tokenizer.name."
        if self._path.is_dir() and not (self._path / TOKENIZER_NAME).is_file():
            pieces = [file.name for file in sorted(self._path.iterdir()) if file.suffix in SENTENCEPIECE_SUFFIXES]
            if pieces:
                return (
                    f"tokenizer.name={self.name} holds the SentencePiece model {pieces[0]} and no tokenizer.json; "
                    "run `pip install sentencepiece protobuf`, which lets it be converted."
                )
            return f"tokenizer.name={self.name} is a folder without a tokenizer.json; name one that has it ({reason})."
        return f"tokenizer.name={self.name} cannot be loaded ({reason}); name a tokenizer.json, or a folder with one."
