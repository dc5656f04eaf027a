"""LAMBADA: passages whose last word is to be predicted (Paperno et al. 2016)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from retro_lab.corpus.documents import Document, Split
from retro_lab.corpus.sources.hub import HubSource

LAST_WORD = re.compile(r"\s\S+$")
"""The last word with the space before it: tokenizers join the two, and the words before then have tokens of their own.
Other implementations (lm-eval) score the same."""


class LambadaSource(HubSource):
    """Passages of a dataset of the hub or of a file, with a record or a line for each; the last word alone is scored.

    Spaces and line ends after the last word are dropped.
    """

    scores_parts: ClassVar[bool] = True
    counts_hits: ClassVar[bool] = True

    def _documents(self, records: Iterable[tuple[str, Mapping[str, Any]]], split: Split) -> Iterator[Document]:
        for document in super()._documents(records, split):
            text = document.text.rstrip()
            word = LAST_WORD.search(text)
            if document.problem or not text:
                yield document
            elif word is None:
                yield replace(document, problem="only one word")
            else:
                yield replace(document, text=text, scored_from=word.start())
