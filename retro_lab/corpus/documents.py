"""Documents and where they come from.

A `DocumentSource` yields raw documents in independent parts; its reader drops those that `rejection` gives a reason
against. This module imports nothing heavy: readers of files and of the hub are in modules of their own.
"""

import copy
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypedDict

from retro_lab.errors import ConfigurationError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT: tuple[Split, ...] = ("validation", "test")
"""Splits that are not trained on: the first to choose settings on, the second to report results on."""

UNREADABLE = "unreadable record"
NO_TEXT_FIELD = "no text field"
DANGLING = "link to nothing"
TOO_LONG = "longer than corpus.max_document_bytes"
MAX_DOCUMENT_BYTES = 8e6
"""Default of `corpus.max_document_bytes`: encoding takes about 125 bytes of memory for each byte of a document."""
RECORD_BYTES = 4
"""A record may be this many times as long as its document: JSON may take six bytes for one, and has other fields."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text; `source` and `id` together identify it, `id` alone may occur in two sources."""

    id: str
    source: str
    """Name of the corpus, or of the part of a mixture, that the document came from."""
    text: str
    problem: str | None = None
    """Set by the source if it already knows that the document cannot be used; its text is then undefined."""
    group: str = ""
    """Documents with the same group are in the same split; by default the group is the id."""
    scored_from: int = 0
    """Character that scoring starts at, such as the first of a summary; what is before it is read as context only."""

    def __post_init__(self) -> None:
        """Make the id the group if none is given."""
        object.__setattr__(self, "group", self.group or self.id)


class SourceSettings(TypedDict, total=False):
    """Settings of every source, described in `retro_lab.corpus.config.CorpusConfig`."""

    validation_fraction: float
    test_fraction: float
    group_pattern: str | None
    max_bytes: float | None
    max_document_bytes: float
    overlap: float | None


class DocumentSource(ABC):
    """Raw documents in independent parts, each read in a fixed order."""

    scores_parts: ClassVar[bool] = False
    """Whether documents may be scored in part, from their `scored_from` on."""
    counts_hits: ClassVar[bool] = False
    """Whether a score includes its accuracy: the share of documents whose scored text is what a model would write."""
    line_ends_are_words: ClassVar[bool] = False
    """Whether the end of each line counts in the perplexity per word, as it does in published ones of WikiText."""

    def __init__(
        self,
        *,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
        group_pattern: str | None = None,
        max_bytes: float | None = None,
        max_document_bytes: float = MAX_DOCUMENT_BYTES,
        overlap: float | None = None,
    ) -> None:
        """Hold out two fractions of the documents, and take `max_bytes` of text, or all of it if None.

        The first match of the regular expression `group_pattern` in a document's id, if any, is its group; documents
        of a group are held out together.

        Documents longer than `max_document_bytes` are not wanted; a source may skip them without reading them whole.

        `overlap` is the share of each window that is in the one before as well where the text is scored; it changes
        nothing about the documents.

        Raises:
            ConfigurationError: A fraction or the overlap is not in [0, 1), both fractions together leave nothing to
                train on, the pattern is not a regular expression, or a limit is not positive.
        """
        shares = {"validation_fraction": validation_fraction, "test_fraction": test_fraction, "overlap": overlap}
        for name, fraction in shares.items():
            if fraction is not None and not 0 <= fraction < 1:
                raise ConfigurationError(f"corpus.{name}={fraction} must be in [0, 1).")
        if not validation_fraction + test_fraction < 1:
            raise ConfigurationError(
                f"corpus.validation_fraction={validation_fraction} and corpus.test_fraction={test_fraction} leave "
                "nothing to train on; their sum must be below 1."
            )
        try:
            re.compile(group_pattern or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigurationError(
                f"corpus.group_pattern={group_pattern} is not a regular expression ({error}); correct it, or set it to "
                "null."
            ) from error
        if max_bytes is not None and not max_bytes > 0:
            raise ConfigurationError(f"corpus.max_bytes={max_bytes} must be positive; null takes all of the text.")
        if not max_document_bytes >= 1:
            raise ConfigurationError(f"corpus.max_document_bytes={max_document_bytes} must be at least 1.")
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.group_pattern = group_pattern
        self.max_bytes = max_bytes
        self.max_document_bytes = max_document_bytes
        self.overlap = overlap

    def limited(self, larger: "DocumentSource", max_bytes: float) -> Self:
        """Return the same source as part of a `larger` one, to which it contributes `max_bytes` of text.

        It takes over the larger one's held-out fractions and longest document, and its pattern of groups unless it has
        groups of its own; it keeps its own `max_bytes` if that is smaller.
        """
        limited = copy.copy(self)
        limited.validation_fraction = larger.validation_fraction
        limited.test_fraction = larger.test_fraction
        if not self.is_grouped:
            limited.group_pattern = larger.group_pattern
        limited.max_document_bytes = larger.max_document_bytes
        limited.max_bytes = max_bytes if self.max_bytes is None else min(max_bytes, self.max_bytes)
        return limited

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return everything that the documents depend on, as JSON-able values without paths of this machine.

        `max_document_bytes` may be left out: the stage that drops longer documents adds it.
        """

    @property
    def is_grouped(self) -> bool:
        """Whether a group may have several documents."""
        return self.group_pattern is not None

    @property
    def named_splits(self) -> frozenset[Split]:
        """Held-out splits whose documents are named, rather than chosen by a hash of the groups.

        If only one of the two is named, its documents are divided between both.
        """
        return frozenset()

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits that have documents; a text that is only ever scored has none to train on."""
        return SPLITS

    def to_score(self) -> Self:
        """Return the same source without the documents to train on, if that saves reading them."""
        return self

    @abstractmethod
    def parts(self) -> int:
        """Return the number of independent units of work (groups of files, shards of a dataset); at least 1."""

    @abstractmethod
    def read(self, part: int) -> Iterator[tuple[Split, Document]]:
        """Yield the raw documents of one part in a fixed order, each with its split.

        A text may be empty, contain NULs, or have lone surrogates for bytes that are not UTF-8 (see `rejection`).
        """

    def _placed(self, document: Document, named: Split = "train") -> tuple[Split, Document]:
        """Return a document with its group and its split.

        `named` is the split that the source gives for it, `train` if none.
        """
        if self.group_pattern is not None and (match := re.search(self.group_pattern, document.id)):
            document = replace(document, group=match[0])
        if not self.named_splits:
            return hashed_split(document.group, self.validation_fraction, self.test_fraction), document
        if named == "train" or self.named_splits >= {*self.splits} - {"train"}:
            return named, document
        return hashed_split(document.group, 0.5, 0.5), document

    def _budgets(self) -> dict[Split, float | None]:
        """Divide `max_bytes` between the named splits and the text to train on; there are no limits if it is None.

        A held-out split that is named alone gets the fractions of both.
        """
        shares: dict[Split, float] = {"validation": self.validation_fraction, "test": self.test_fraction}
        if len(self.named_splits) < len(HELD_OUT):
            shares = dict.fromkeys(self.named_splits, self.validation_fraction + self.test_fraction)
        if self.max_bytes is None:
            return dict.fromkeys(("train", *shares))
        held = {split: share * self.max_bytes for split, share in shares.items()}
        return {"train": self.max_bytes - sum(held.values()), **held}


def rejection(text: str, max_bytes: float = MAX_DOCUMENT_BYTES) -> str | None:
    """Say why a document with this text cannot be used, such as more than `max_bytes` of UTF-8; None if it can."""
    if not text.strip():
        return "empty"
    if "\0" in text:
        return "NUL character"
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return "not UTF-8"
    return TOO_LONG if size > max_bytes else None


def hashed_split(group: str, validation_fraction: float, test_fraction: float) -> Split:
    """Return the split of a group by a hash of its name, which is the same on any machine and in any order.

    The smallest hashes are held out, according to the sum of both fractions, so a larger sum also holds out all that a
    smaller one does. The smallest of these are the test split.
    """
    place = name_hash(group)
    if place >= (validation_fraction + test_fraction) * 2**64:
        return "train"
    return "test" if place < test_fraction * 2**64 else "validation"


def is_sampled(document_id: str, fraction: float) -> bool:
    """Return whether a document is in a sample of its source; this is independent of its split."""
    return name_hash(document_id, b"sample") < fraction * 2**64


def name_hash(name: str, purpose: bytes = b"") -> int:
    """Return the hash of a group's name or an id, below 2^64, a different one for each purpose."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big")


def valid_unicode(name: str) -> str:
    r"""Return `name` with lone surrogates (bytes that were not UTF-8) escaped as `\udcff`, so it can be encoded."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def text_bytes(text: str) -> int:
    """Return the length of the text in UTF-8 bytes."""
    return len(text.encode("utf-8", "surrogatepass"))


def take_bytes(documents: Iterable[Document], max_bytes: float | None) -> Iterator[Document]:
    """Yield whole documents until their text reaches `max_bytes`; the last one may exceed it."""
    taken = 0
    for document in documents:
        if max_bytes is not None and taken >= max_bytes:
            return
        yield document
        taken += text_bytes(document.text)


def byte_shares(sizes: Sequence[int], max_bytes: float | None) -> list[float | None]:
    """Divide `max_bytes` in proportion to `sizes`, or evenly if all are zero; None stands for no limit."""
    if max_bytes is None:
        return [None] * len(sizes)
    total = sum(sizes)
    return [max_bytes * size / total if total else max_bytes / len(sizes) for size in sizes]
