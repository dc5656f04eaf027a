"""Articles with summaries, of which the summaries are scored (Borgeaud et al. 2022, Sec. 4: Curation Corpus)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import tee
from typing import Any, ClassVar

from retro_lab.corpus.documents import Document, Split
from retro_lab.corpus.sources.hub import HubSource
from retro_lab.corpus.sources.records import RecordFields

BETWEEN = "\n\nTL;DR:"
"""What stands between an article and its summary. A space follows that belongs to the summary, as tokenizers join it
with the first word."""


class SummarySource(HubSource):
    """Records with an article and a summary, each of them one document: article, "TL;DR:" and summary."""

    scores_parts: ClassVar[bool] = True

    def __init__(self, article_field: str, **options: Any) -> None:
        """Read articles in `article_field` and summaries in `text_field`; other options are those of `HubSource`."""
        super().__init__(**options)
        self.articles = RecordFields(article_field, option="article_field")

    def identity(self) -> dict[str, Any]:
        """Return the identity of the dataset and the name of the field."""
        return super().identity() | {"article_field": self.articles.text, "between": BETWEEN}

    def _documents(self, records: Iterable[tuple[str, Mapping[str, Any]]], split: Split) -> Iterator[Document]:
        records, again = tee(records)
        for (place, record), document in zip(again, super()._documents(records, split), strict=True):
            article = self.articles.document(record, place, "").text.strip()
            summary = document.text.strip()
            if document.problem is None and not (article and summary):
                document = replace(document, problem="no summary" if article else "no article")
            context = article + BETWEEN
            yield replace(document, text=f"{context} {summary}", scored_from=len(context))
