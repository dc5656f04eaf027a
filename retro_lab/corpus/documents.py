"""Documents and where they come from.

A `DocumentSource` yields raw documents in independent parts; what cannot be used is told by `rejection` and dropped
by whoever reads. This module imports nothing heavy: the readers of files and of the hub live in their own modules.
"""

import copy
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypedDict

from retro_lab.errors import ConfigurationError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT: tuple[Split, ...] = ("validation", "test")
"""Splits that are not trained on: settings are chosen on the first, and results are those of the second."""

UNREADABLE = "unreadable record"
NO_TEXT_FIELD = "no text field"
DANGLING = "link to nothing"
TOO_LONG = "longer than corpus.max_document_bytes"
MAX_DOCUMENT_BYTES = 8e6
"""Default of `corpus.max_document_bytes`: encoding takes about 125 bytes of memory for each byte of a document."""
RECORD_BYTES = 4
"""A record may be this many times as long as a document: JSON writes a byte as two to six, and has other fields."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text; `source` and `id` together identify it, `id` alone may occur in two sources."""

    id: str
    source: str
    """Name of the corpus, or of the part of a mixture, that the document came from."""
    text: str
    problem: str | None = None
    """Why the document cannot be used, where whoever read it knows; its text is then whatever."""
    group: str = ""
    """Documents of one group are in one split; empty stands for the id, which makes a document a group by itself."""

    def __post_init__(self) -> None:
        """Put the id in the place of no group."""
        object.__setattr__(self, "group", self.group or self.id)


class SourceSettings(TypedDict, total=False):
    """What every source can be told; `retro_lab.corpus.config.CorpusConfig` describes it."""

    validation_fraction: float
    test_fraction: float
    group_pattern: str | None
    max_bytes: float | None
    max_document_bytes: float


class DocumentSource(ABC):
    """Raw documents in independent parts, each read in a fixed order."""

    def __init__(
        self,
        *,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
        group_pattern: str | None = None,
        max_bytes: float | None = None,
        max_document_bytes: float = MAX_DOCUMENT_BYTES,
    ) -> None:
        """Hold out two shares of the documents, and take `max_bytes` of text; all of it when None.

        What the regular expression `group_pattern` first matches in a document's id, if anything, names its group:
        documents of one group are held out together.

        Documents of more than `max_document_bytes` are not wanted; sources that can, pass over them without reading
        them whole.

        Raises:
            ConfigurationError: A fraction is not in [0, 1), both together leave nothing to train on, the pattern is no
                regular expression, or a limit is not positive.
        """
        for name, fraction in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
            if not 0 <= fraction < 1:
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
                f"corpus.group_pattern={group_pattern} is no regular expression ({error}); correct it, or set it to "
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

    def limited(self, larger: "DocumentSource", max_bytes: float) -> Self:
        """Return the same source as a part of a `larger` one, of which it gives `max_bytes` of text.

        It has the larger one's held-out fractions and longest document, its pattern of groups if it has no groups of
        its own, and its own limit of bytes if that is smaller.
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
        """Return all that the documents depend on, as JSON-able values without paths of this machine.

        `max_document_bytes` need not be among them: the stage that drops longer documents adds it.
        """

    @property
    def is_grouped(self) -> bool:
        """Whether documents may be in groups of several."""
        return self.group_pattern is not None

    @property
    def named_splits(self) -> frozenset[Split]:
        """Held-out splits of which it is said what is in them, rather than left to a hash of the groups.

        Where it is one of the two, its documents are divided between both.
        """
        return frozenset()

    @abstractmethod
    def parts(self) -> int:
        """Return the number of independent units of work (groups of files, shards of a dataset); at least 1."""

    @abstractmethod
    def read(self, part: int) -> Iterator[tuple[Split, Document]]:
        """Yield the raw documents of one part in a fixed order, each with the split it belongs to.

        The text may be anything: empty, with NULs, with lone surrogates where bytes were not UTF-8 (see `rejection`).
        """

    def _placed(self, document: Document, named: Split = "train") -> tuple[Split, Document]:
        """Return a document with its group and its split.

        `named` is the split that the source says it is in, `train` where it names none.
        """
        if self.group_pattern is not None and (match := re.search(self.group_pattern, document.id)):
            document = replace(document, group=match[0])
        if not self.named_splits:
            return hashed_split(document.group, self.validation_fraction, self.test_fraction), document
        if named == "train" or len(self.named_splits) == len(HELD_OUT):
            return named, document
        return hashed_split(document.group, 0.5, 0.5), document

    def _budgets(self) -> dict[Split, float | None]:
        """Divide `max_bytes` between the splits that are named, and the rest of the text; no limits where it is None.

        A held-out split that is named alone has the shares of both.
        """
        shares: dict[Split, float] = {"validation": self.validation_fraction, "test": self.test_fraction}
        if len(self.named_splits) < len(HELD_OUT):
            shares = dict.fromkeys(self.named_splits, self.validation_fraction + self.test_fraction)
        if self.max_bytes is None:
            return dict.fromkeys(("train", *shares))
        held = {split: share * self.max_bytes for split, share in shares.items()}
        return {"train": self.max_bytes - sum(held.values()), **held}


def rejection(text: str, max_bytes: float = MAX_DOCUMENT_BYTES) -> str | None:
    """Say why a document of this text cannot be used; None when it can, which takes at most `max_bytes` of UTF-8."""
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
    """Return the split of a group by a hash of its name, so the same on any machine, in any order, at any time.

    The smallest hashes are held out, as many as both fractions together say: a larger sum holds out all that a smaller
    one does. The smallest of these are the test split.
    """
    place = name_hash(group)
    if place >= (validation_fraction + test_fraction) * 2**64:
        return "train"
    return "test" if place < test_fraction * 2**64 else "validation"


def is_sampled(document_id: str, fraction: float) -> bool:
    """Whether a document is in a sample of its source; has nothing to do with the split that it is in."""
    return name_hash(document_id, b"sample") < fraction * 2**64


def name_hash(name: str, purpose: bytes = b"") -> int:
    """Return a number below 2^64: a hash of a group's name or an id, another one for each purpose."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big")


def valid_unicode(name: str) -> str:
    r"""Return `name` with lone surrogates (bytes that were not UTF-8) written out as `\udcff`, so that it has bytes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def text_bytes(text: str) -> int:
    """Length of the text in UTF-8 bytes."""
    return len(text.encode("utf-8", "surrogatepass"))


def take_bytes(documents: Iterable[Document], max_bytes: float | None) -> Iterator[Document]:
    """Yield whole documents until their text comes to `max_bytes`; the last one may go beyond it."""
    taken = 0
    for document in documents:
        if max_bytes is not None and taken >= max_bytes:
            return
        yield document
        taken += text_bytes(document.text)


def byte_shares(sizes: Sequence[int], max_bytes: float | None) -> list[float | None]:
    """Divide `max_bytes` in proportion to `sizes`; evenly where all are zero, no limit where there is none."""
    if max_bytes is None:
        return [None] * len(sizes)
    total = sum(sizes)
    return [max_bytes * size / total if total else max_bytes / len(sizes) for size in sizes]
