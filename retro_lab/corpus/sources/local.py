"""The user's own files as a corpus."""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, Unpack

from retro_lab.corpus.documents import (
    RECORD_BYTES,
    SPLITS,
    Document,
    DocumentSource,
    SourceSettings,
    Split,
    byte_shares,
    take_bytes,
)
from retro_lab.corpus.sources.local_files import LocalFile, checked_format, find_files
from retro_lab.corpus.sources.local_rows import Row, read_rows
from retro_lab.corpus.sources.records import ROWS_WITHOUT, RecordFields, check_groups
from retro_lab.errors import ConfigurationError, CorpusError

SOURCE_NAME = "local"
FILES_IN_PART = 256
BYTES_IN_PART = 64 * 2**20


class LocalSource(DocumentSource):
    """Files in JSON, JSON lines, Parquet, Arrow or plain text; JSON and text may be gz, zst, bz2 or xz compressed.

    A document is one record, or one whole text file. If `path` is a single text file, it is divided at blank lines into
    documents of about 8 kB, some of which are held out; several text files stay one document each. A document's id is
    the id field or `file name:row`, with rows (documents, of a divided text) counted from 1.
    """

    def __init__(
        self,
        path: str,
        validation_path: str | None = None,
        test_path: str | None = None,
        format: str | None = None,
        text_field: str = "text",
        id_field: str | None = None,
        group_field: str | None = None,
        **settings: Unpack[SourceSettings],
    ) -> None:
        """Read `path`, and hold out `validation_path` and `test_path`; each is a file, a folder or a glob pattern.

        Without either, `validation_fraction` and `test_fraction` of the documents are held out by a hash of their ids.
        Held-out files are never trained on, even if `path` includes them; if only one of the two is given, a hash of
        the ids divides its documents into two halves, one for each held-out split.

        `max_bytes` is divided among the parts in proportion to the size of their files, and each part
        contributes its first documents until its share is reached, exceeding it by at most one. Held-out files get the
        fractions of their splits of `max_bytes`; those of a path that is given alone get both.

        Raises:
            ConfigurationError: Both a pattern and a field name groups.
            CorpusError: The format is unknown.
        """
        super().__init__(**settings)
        self.path = path
        self.held_out_paths: dict[Split, str | None] = {"validation": validation_path, "test": test_path}
        self.format = checked_format(format)
        self.fields = RecordFields(text_field, id_field, group_field)
        check_groups(self.group_pattern, group_field)

    def identity(self) -> dict[str, Any]:
        """Return the settings, and the name, size and SHA-256 of every file."""
        return {
            "kind": "local",
            "text_field": self.fields.text,
            "id_field": self.fields.id,
            "group_field": self.fields.group,
            "validation_fraction": self.validation_fraction,
            "test_fraction": self.test_fraction,
            "group_pattern": self.group_pattern,
            "max_bytes": self.max_bytes,
        } | {split: self._facts[split] for split in SPLITS}

    @cached_property
    def _facts(self) -> dict[Split, dict[str, dict[str, str | int]]]:
        """Size and checksum of each split's files; computed once, as this reads every byte."""
        return {split: {file.name: file.facts() for file in files} for split, files in self._files.items()}

    @property
    def is_grouped(self) -> bool:
        """Whether a field or a pattern names groups."""
        return self.fields.group is not None or super().is_grouped

    @property
    def named_splits(self) -> frozenset[Split]:
        """Splits whose files are named."""
        return frozenset(split for split, path in self.held_out_paths.items() if path)

    def parts(self) -> int:
        """Return the number of groups of files: up to 256 files or 64 MiB each.

        Raises:
            CorpusError: A path names no files, only empty files, or files of unknown format.
        """
        return len(self._groups)

    def read(self, part: int) -> Iterator[tuple[Split, Document]]:
        """Yield the documents of one group of files.

        Raises:
            CorpusError: A file is damaged, none of the records has the text field, an id is missing, or the text field
                holds something else than text.
        """
        split, files = self._groups[part]
        for document in take_bytes(self._documents(files), self._limits()[part]):
            yield self._placed(document, split)

    def _documents(self, files: list[LocalFile]) -> Iterator[Document]:
        fields = RecordFields("text") if any(file.format == "text" for file in files) else self.fields
        yield from fields.documents(self._records(files, fields), SOURCE_NAME, lambda: self._text_is_somewhere)

    def _records(self, files: list[LocalFile], fields: RecordFields) -> Iterator[tuple[str, Row]]:
        """Yield the records of some files, each with its location."""
        for file in files:
            for row, record in read_rows(file, int(RECORD_BYTES * self.max_document_bytes), fields):
                yield f"{file.name}:{row}", record

    @cached_property
    def _text_is_somewhere(self) -> bool:
        """Whether one of the first records of a part has the text field."""
        fields = RecordFields(self.fields.text)
        return any(
            not isinstance(record, str) and fields.are_in(record)
            for _, files in self._groups
            for _, record in islice(self._records(files, fields), ROWS_WITHOUT)
        )

    def _limits(self) -> list[float | None]:
        """Bytes of text to take from each part."""
        budgets = self._budgets()
        limits: list[float | None] = []
        for split in SPLITS:
            sizes = [sum(file.size for file in files) for owner, files in self._groups if owner == split]
            limits += byte_shares(sizes, budgets.get(split))
        return limits

    @cached_property
    def _groups(self) -> list[tuple[Split, list[LocalFile]]]:
        """Files of each part: first those of the training split, then held-out ones."""
        return [(split, group) for split, files in self._files.items() for group in _grouped(files)]

    @cached_property
    def _files(self) -> dict[Split, list[LocalFile]]:
        held = {
            split: find_files(path, self.format, f"corpus.{split}_path") if path else []
            for split, path in self.held_out_paths.items()
        }
        owners: dict[str, Split] = {}
        for split, files in held.items():
            for file in files:
                if owners.setdefault(os.path.realpath(file.path), split) != split:
                    raise CorpusError(
                        f"{file.name} is in both corpus.validation_path and corpus.test_path; name it once."
                    )
        files = find_files(self.path, self.format, "corpus.path")
        if len(files) == 1 and files[0].format == "text":
            files = [replace(files[0], cut=True)]
        train = [file for file in files if os.path.realpath(file.path) not in owners]
        if not train:
            options = " and ".join(f"corpus.{split}_path" for split in held if held[split])
            raise CorpusError(f"{options} hold out every file of corpus.path={self.path}; leave some to train on.")
        found: dict[Split, list[LocalFile]] = {"train": train, **held}
        if any(file.format == "text" for files in found.values() for file in files):
            for option, name in (("id_field", self.fields.id), ("group_field", self.fields.group)):
                if name:
                    raise ConfigurationError(f"corpus.{option}={name} needs records, but text files have no fields.")
        return found


def _grouped(files: list[LocalFile]) -> Iterator[list[LocalFile]]:
    """Divide files, in order, into groups that are one piece of work each."""
    group: list[LocalFile] = []
    size = 0
    for file in files:
        if group and (len(group) == FILES_IN_PART or size + file.size > BYTES_IN_PART):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.size
    if group:
        yield group
