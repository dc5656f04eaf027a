"""Wikipedia without the articles that another corpus holds out (Borgeaud et al. 2022, Sec. 2.1)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import tee
from typing import Any

from retro_lab.corpus.documents import Document, DocumentSource, Split
from retro_lab.corpus.sources.hub import HubSource
from retro_lab.corpus.sources.records import RecordFields

HELD_OUT_ELSEWHERE = "article held out elsewhere"


class WikipediaSource(HubSource):
    """Articles of a dataset of the hub, without those that have the same title as an article in `without`."""

    def __init__(self, title_field: str = "title", without: DocumentSource | None = None, **options: Any) -> None:
        """Read articles with their title in `title_field`; other options are those of `HubSource`.

        The ids of `without` are titles after a colon, as those of `WikiTextSource` are.
        """
        super().__init__(**options)
        self.without = without
        self.titles = RecordFields(title_field, option="title_field")

    def identity(self) -> dict[str, Any]:
        """Return the identities of the dataset and of `without`."""
        without = None if self.without is None else self.without.identity()
        return super().identity() | {"title_field": self.titles.text, "without": without}

    def _documents(self, records: Iterable[tuple[str, Mapping[str, Any]]], split: Split) -> Iterator[Document]:
        records, again = tee(records)
        for (place, record), document in zip(again, self.fields.documents(records, self._source_name), strict=True):
            if self.without and plain_title(self.titles.document(record, place, "").text) in self._left_out:
                document = replace(document, text="", problem=HELD_OUT_ELSEWHERE)
            yield document

    @cached_property
    def _left_out(self) -> set[str]:
        """Titles of the articles to leave out, a few hundred of them."""
        assert self.without is not None
        parts = range(self.without.parts())
        return {plain_title(document.id.partition(":")[2]) for part in parts for _, document in self.without.read(part)}


def plain_title(title: str) -> str:
    """Return the letters and digits of a title, as WikiText adds spaces and @ around punctuation."""
    return re.sub(r"[\W_]+", "", title.casefold())
