"""Datasets of the Hugging Face hub as a corpus, streamed shard by shard."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

from retro_lab.corpus.documents import (
    HELD_OUT,
    SPLITS,
    Document,
    DocumentSource,
    SourceSettings,
    Split,
    byte_shares,
    take_bytes,
)
from retro_lab.corpus.sources.hub_dataset import HubDataset, HubSplit
from retro_lab.corpus.sources.records import RecordFields, check_groups, enumerate_rows
from retro_lab.errors import ConfigurationError

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
        train_split: str | None = "train",
        validation_split: str | None = None,
        test_split: str | None = None,
        text_field: str = "text",
        id_field: str | None = None,
        group_field: str | None = None,
        part: str | None = None,
        parts: Mapping[str, str] | None = None,
        part_field: str | None = None,
        **settings: Unpack[SourceSettings],
    ) -> None:
        """Stream `train_split` of a dataset, and hold out `validation_split` and `test_split`.

        Without a `train_split`, nothing is trained on, and each held-out split has the documents that its name says.
        Without either held-out split, `validation_fraction` and `test_fraction` of the documents are held out by a hash
        of their ids. If only one of the two is given, the same hash divides its documents into two halves, one for each
        held-out split.

        `max_bytes` is divided among the shards in proportion to the size of their files, or evenly if that is not
        known, and each shard contributes its first documents until its share is reached, exceeding it by at most one.
        Of a dataset much larger than `max_bytes`, only some evenly spaced shards are opened. Held-out splits get their
        fractions of `max_bytes`; one that is given alone gets both.

        Of a dataset with `parts`, their values in the field `part_field` by name, `part` names the only one to read.

        Raises:
            ConfigurationError: Both a pattern and a field name groups, the dataset has no such part, no split is named,
                or a single file is to have several.
        """
        super().__init__(**settings)
        names: dict[Split, str | None] = {"train": train_split, "validation": validation_split, "test": test_split}
        self.split_names: dict[Split, str] = {split: name for split, name in names.items() if name}
        if not self.split_names:
            raise ConfigurationError(
                "corpus.train_split, corpus.validation_split and corpus.test_split are all null; name one."
            )
        self.dataset = HubDataset(*_with_file(dataset, subset, revision, data_files, list(self.split_names.values())))
        self._to_score = False
        if part is not None and (part_field is None or part not in (parts or {})):
            known = f"set it to one of {', '.join(parts)}, or null" if parts else "set it to null"
            raise ConfigurationError(f"corpus.part={part} is not a part of {dataset}; {known}.")
        self.part = None if part is None or not parts else parts[part]
        self.part_field = part_field
        self.fields = RecordFields(text_field, id_field, group_field)
        check_groups(self.group_pattern, group_field)

    def identity(self) -> dict[str, Any]:
        """Return the settings, and the commit on the hub or the size and SHA-256 of every file of a folder.

        Raises:
            CorpusError: The hub must be asked for the commit and cannot be reached.
        """
        if self.dataset.folder:
            files = self.dataset.checksums_of(self._wanted.values()) if self._to_score else self.dataset.checksums
            content: dict[str, Any] = {"files": files}
        else:
            content = {"dataset": self.dataset.name, "commit": self.dataset.commit}
        return content | {
            "kind": type(self).__name__,
            "subset": self.dataset.subset,
            "data_files": self.dataset.data_files,
            "splits": dict(self.split_names),
            "text_field": self.fields.text,
            "id_field": self.fields.id,
            "group_field": self.fields.group,
            "validation_fraction": self.validation_fraction,
            "test_fraction": self.test_fraction,
            "group_pattern": self.group_pattern,
            "max_bytes": self.max_bytes,
            **({"part": {self.part_field: self.part}} if self.part is not None else {}),
            **({"to_score": True} if self._to_score else {}),
        }

    @property
    def is_grouped(self) -> bool:
        """Whether a field or a pattern names groups."""
        return self.fields.group is not None or super().is_grouped

    @property
    def named_splits(self) -> frozenset[Split]:
        """Held-out splits that are named."""
        return frozenset(self.split_names) - {"train"}

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits that have documents: of one that is held out alone beside documents to train on, both halves."""
        if "train" in self._wanted:
            return SPLITS
        halved = len(self.named_splits) == 1 and "train" in self.split_names
        return HELD_OUT if halved else tuple(self._wanted)

    @property
    def _wanted(self) -> dict[Split, str]:
        """The splits that are read, with their names; to score, no more than the test split comes from."""
        if not self._to_score:
            return self.split_names
        source: Split = "test" if "test" in self.split_names else "validation"
        return {source: self.split_names[source]}

    def to_score(self) -> Self:
        """Return the same source without the documents to train on, where held-out ones have splits of their own."""
        source = copy.copy(self)
        source._to_score = bool(self.named_splits)
        if source._to_score:
            source.dataset = self.dataset.only(source._wanted.values())
        return source

    def _budgets(self) -> dict[Split, float | None]:
        if "train" in self.split_names:
            budgets = super()._budgets()
        else:
            share = None if self.max_bytes is None else self.max_bytes / len(self.split_names)
            budgets = dict.fromkeys(self.split_names, share)
        return {split: budgets[split] for split in self._wanted}

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
        for document in take_bytes(self._of_part(chosen), chosen.limit):
            yield self._placed(document, chosen.split)

    def _of_part(self, chosen: _Part) -> Iterator[Document]:
        """Yield the documents of some shards; those of another part than wanted cannot be used."""
        if self.part is None:
            yield from self._documents(chosen.records(), chosen.split)
            return
        assert self.part_field is not None
        parts = RecordFields(self.part_field, option="part_field")
        records, again = tee(chosen.records())
        for (place, record), document in zip(again, self._documents(records, chosen.split), strict=True):
            if parts.document(record, place, "").text != self.part:
                document = replace(document, text="", problem=f"of another part than {self.part}")
            yield document

    def _documents(self, records: Iterable[tuple[str, Mapping[str, Any]]], split: Split) -> Iterator[Document]:
        """Make documents of the records of one part, which come with their locations."""
        yield from self.fields.documents(records, self._source_name)

    @property
    def _source_name(self) -> str:
        return "local" if self.dataset.folder else self.dataset.name

    def _parts(self) -> list[_Part]:
        parts = []
        for split, budget in self._budgets().items():
            opened = self.dataset.split(self.split_names[split], f"corpus.{split}_split")
            shards = _enough(opened.shard_sizes, budget)
            if self.shards_are_independent:
                limits = byte_shares([opened.shard_sizes[shard] for shard in shards], budget)
                parts += [_Part(split, opened, [shard], limit) for shard, limit in zip(shards, limits, strict=True)]
            else:
                parts.append(_Part(split, opened, list(range(len(opened.shard_names))), budget))
        return parts


def _with_file(
    dataset: str, subset: str | None, revision: str | None, data_files: Mapping[str, Any] | None, splits: list[str]
) -> tuple[str, str | None, str | None, Mapping[str, Any] | None]:
    """Return what `HubDataset` takes; a single file is one in its folder, with all documents of the only split.

    Raises:
        ConfigurationError: There are several splits.
    """
    path = Path(dataset).expanduser()
    if data_files is not None or not path.is_file():
        return dataset, subset, revision, data_files
    if len(splits) != 1:
        raise ConfigurationError(
            f"corpus.dataset={dataset} is one file, and the splits {', '.join(splits)} are wanted; "
            "name a folder, or set all splits but one to null."
        )
    return str(path.parent), None, None, {splits[0]: path.name}


def _enough(sizes: list[int], budget: float | None) -> list[int]:
    """Choose evenly spaced shards that contain at least `budget` bytes of text, or all if a size is unknown."""
    if budget is None or not all(sizes):
        return list(range(len(sizes)))
    file_bytes = max(FILE_BYTES_PER_BYTE_TAKEN * budget, FILE_BYTES_OPENED)
    count = min(len(sizes), math.ceil(file_bytes * len(sizes) / sum(sizes)))
    return [index * len(sizes) // count for index in range(count)]
