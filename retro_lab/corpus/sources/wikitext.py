"""WikiText as articles; the hub's dataset has a row for each line."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from retro_lab.corpus.documents import Document, Split
from retro_lab.corpus.sources.hub import HubSource
from retro_lab.errors import ConfigurationError

ARTICLE_HEADING = re.compile(r" = (?!= )(?P<title>.+)(?<! =) = ?\n?")
"""A heading of the first level, ` = Title = `; sections have ` = = Section = = `."""
BLANK_LINE = " \n"
"""An empty line in the original file; the dataset has an empty row for it."""


class WikiTextSource(HubSource):
    """Joins the rows of a WikiText dataset into articles, as they are in the original file.

    An article starts at a heading of the first level between two blank lines. Its id is `split:title`.
    """

    shards_are_independent: ClassVar[bool] = False
    line_ends_are_words: ClassVar[bool] = True

    def __init__(self, dataset: str, **options: Any) -> None:
        """Take the options of `HubSource`, except those that name fields of a document, as rows are lines.

        Raises:
            ConfigurationError: A field is named for ids or groups.
        """
        super().__init__(dataset, **options)
        for option, name in (("id_field", self.fields.id), ("group_field", self.fields.group)):
            if name is not None:
                raise ConfigurationError(
                    f"corpus.{option}={name} is a field of lines, not of articles; set it to null."
                )

    def _documents(self, records: Iterable[tuple[str, Mapping[str, Any]]], split: Split) -> Iterator[Document]:
        title = ""
        lines: list[str] = []
        for line, starts_article in _marked_headings(self._lines(records)):
            if starts_article:
                if any(line.strip() for line in lines):
                    yield self._article(split, title, lines)
                match = ARTICLE_HEADING.fullmatch(line)
                title, lines = match["title"] if match else "", []
            lines.append(line)
        if any(line.strip() for line in lines):
            yield self._article(split, title, lines)

    def _lines(self, records: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
        for place, record in records:
            text = self.fields.document(record, place, "").text
            yield text if text.strip() else BLANK_LINE

    def _article(self, split: Split, title: str, lines: list[str]) -> Document:
        return Document(f"{split}:{title}", self._source_name, "".join(lines))


def _marked_headings(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield each line, one behind, with whether an article starts there, which depends on the next line."""
    before, held = BLANK_LINE, None
    for line in lines:
        if held is not None:
            yield held, _is_heading(before, held, line)
            before = held
        held = line
    if held is not None:
        yield held, _is_heading(before, held, BLANK_LINE)


def _is_heading(before: str, line: str, after: str) -> bool:
    return bool(ARTICLE_HEADING.fullmatch(line)) and not before.strip() and not after.strip()
