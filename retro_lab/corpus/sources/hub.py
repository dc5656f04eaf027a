"""Datasets of the Hugging Face hub as a corpus, streamed shard by shard."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

from retro_lab.corpus.documents import (
    Document,
    DocumentSource,
    SourceSettings,
    Split,
    byte_shares,
    take_bytes,
)
from retro_lab.corpus.sources.hub_dataset import HubDataset, HubSplit
from retro_lab.corpus.sources.records import RecordFields, check_groups, enumerate_rows

FILE_BYTES_PER_BYTE_TAKEN = 4
"""With `max_bytes`, only as many shards are opened as take this many times as much on disk, ..."""
FILE_BYTES_OPENED = 64 * 2**20
"""... or this much, if that is more: a small file may have little text beside its other fields."""


@dataclass(frozen=True, slots=True)
class _Part:
    split: Split
    opened: HubSplit
    shards: list[int]
    limit: float | None

    def records(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the records of the part's shards in order, each with its location, `file name:row`."""
        names = self.opened.shard_names
        for shard in self.shards:
            for row, record in enumerate_rows(self.opened.stream.shard(len(names), shard), names[shard]):
                yield f"{names[shard]}:{row}", record


class HubSource(DocumentSource):
    """A dataset of the hub, or a folder in the same layout; a part is one shard, usually one file.

    A document's id is the id field or `file name:row`, with rows counted from 1.
    """

    shards_are_independent: ClassVar[bool] = True
    """Whether every document ends with its shard."""

    def __init__(
        self,
        dataset: str,
        subset: str | None = None,
        revision: str | None = None,
        data_files: Mapping[str, Any] | None = None,
        train_split: str = "train",
        validation_split: str | None = None,
        test_split: str | None = None,
        text_field: str = "text",
        id_field: str | None = None,
        group_field: str | None = None,
        **settings: Unpack[SourceSettings],
    ) -> None:
        """Stream `train_split` of a dataset, and hold out `validation_split` and `test_split`.

        Without either, `validation_fraction` and `test_fraction` of the documents are held out by a hash of their ids.
        If only one of the two is given, the same hash divides its documents into two halves, one for each held-out
        split.

        `max_bytes` is divided among the shards in proportion to the size of their files, or evenly if that is not
        known, and each shard contributes its first documents until its share is reached, exceeding it by at most one.
        Of a dataset much larger than `max_bytes`, only some evenly spaced shards are opened. Held-out splits get their
        fractions of `max_bytes`; one that is given alone gets both.

        Raises:
            ConfigurationError: Both a pattern and a field name groups.
        """
        super().__init__(**settings)
        self.dataset = HubDataset(dataset, subset, revision, data_files)
        self.splits: dict[Split, str] = {"train": train_split}
        if validation_split:
            self.splits["validation"] = validation_split
        if test_split:
            self.splits["test"] = test_split
        self.fields = RecordFields(text_field, id_field, group_field)
        check_groups(self.group_pattern, group_field)

    def identity(self) -> dict[str, Any]:
        """Return the settings, and the commit on the hub or the size and SHA-256 of every file of a folder.

        Raises:
            CorpusError: The hub must be asked for the commit and cannot be reached.
        """
        if self.dataset.folder:
            content: dict[str, Any] = {"files": self.dataset.checksums}
        else:
            content = {"dataset": self.dataset.name, "commit": self.dataset.commit}
        return content | {
            "kind": type(self).__name__,
            "subset": self.dataset.subset,
            "data_files": self.dataset.data_files,
            "splits": dict(self.splits),
            "text_field": self.fields.text,
            "id_field": self.fields.id,
            "group_field": self.fields.group,
            "validation_fraction": self.validation_fraction,
            "test_fraction": self.test_fraction,
            "group_pattern": self.group_pattern,
            "max_bytes": self.max_bytes,
        }

    @property
    def is_grouped(self) -> bool:
        """Whether a field or a pattern names groups."""
        return self.fields.group is not None or super().is_grouped

    @property
    def named_splits(self) -> frozenset[Split]:
        """Held-out splits that are named."""
        return frozenset(self.splits) - {"train"}

    def parts(self) -> int:
        """Return the number of shards to read.

        Raises:
            CorpusError: The hub cannot be reached, or there is no such dataset, subset, revision, file or split.
        """
        return len(self._parts())

    def read(self, part: int) -> Iterator[tuple[Split, Document]]:
        """Yield the documents of one part.

        Raises:
            CorpusError: A shard is damaged, none of its records has the text field, an id is missing, or the text field
                holds something else than text.
        """
        chosen = self._parts()[part]
        for document in take_bytes(self._documents(chosen.records(), chosen.split), chosen.limit):
            yield self._placed(document, chosen.split)

    def _documents(self, records: Iterable[tuple[str, Mapping[str, Any]]], split: Split) -> Iterator[Document]:
        """Make documents of the records of one part, which come with their locations."""
        yield from self.fields.documents(records, self._source_name)

    @property
    def _source_name(self) -> str:
        return "local" if self.dataset.folder else self.dataset.name

    def _parts(self) -> list[_Part]:
        parts = []
        for split, budget in self._budgets().items():
            opened = self.dataset.split(self.splits[split], f"corpus.{split}_split")
            shards = _enough(opened.shard_sizes, budget)
            if self.shards_are_independent:
                limits = byte_shares([opened.shard_sizes[shard] for shard in shards], budget)
                parts += [_Part(split, opened, [shard], limit) for shard, limit in zip(shards, limits, strict=True)]
            else:
                parts.append(_Part(split, opened, list(range(len(opened.shard_names))), budget))
        return parts


def _enough(sizes: list[int], budget: float | None) -> list[int]:
    """Choose evenly spaced shards that contain at least `budget` bytes of text, or all if a size is unknown."""
    if budget is None or not all(sizes):
        return list(range(len(sizes)))
    file_bytes = max(FILE_BYTES_PER_BYTE_TAKEN * budget, FILE_BYTES_OPENED)
    count = min(len(sizes), math.ceil(file_bytes * len(sizes) / sum(sizes)))
    return [index * len(sizes) // count for index in range(count)]
