"""The `documents` stage: it reads a source once, cleans it, and divides it into splits.

DocumentSource ─► documents (cleaned, split, Parquet) ─► tokenizer ─► tokens of each split
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from retro_lab.artifacts.stage import Advance, Stage
from retro_lab.corpus.documents import (
    HELD_OUT,
    SPLITS,
    Document,
    DocumentSource,
    Split,
    name_hash,
    rejection,
    text_bytes,
)
from retro_lab.corpus.parquet import DOCUMENT_COLUMNS, SCORED_FROM, DocumentsWriter, documents_name
from retro_lab.errors import CorpusError

MAX_REJECTED_EXAMPLES = 5


@dataclass(frozen=True)
class DocumentsFacts:
    """Facts of a `documents` artifact about the documents that were left out."""

    rejected: dict[str, int]
    """Number of documents that cannot be used, by reason."""
    rejected_examples: list[str]


class DocumentsStage(Stage):
    """Read a source once: drop and count documents that cannot be used, and write those of each split as Parquet."""

    name = "documents"
    version = 4
    unit = "parts"

    def __init__(self, source: DocumentSource) -> None:
        """Read from `source`, one shard for each of its parts."""
        self.source = source

    def settings(self) -> Mapping[str, Any]:
        """Return what the documents depend on, and how long they may be."""
        return {**self.source.identity(), "max_document_bytes": self.source.max_document_bytes}

    def shard_sizes(self) -> Sequence[int]:
        """Return one shard for each part."""
        return [1] * self.source.parts()

    def _problem(self, document: Document) -> str | None:
        """Say why a document cannot be used; None if it can."""
        if document.problem:
            return document.problem
        if document.scored_from and not document.text[document.scored_from :].strip():
            return "nothing to score"
        return rejection(document.text, self.source.max_document_bytes)

    @cached_property
    def _moved(self) -> Mapping[str, Split]:
        """Groups that move to another split than their hash says, because a held-out split would be empty otherwise.

        Groups are held out in the order of their hashes, first for the test split. So a small corpus holds out the two
        groups with the smallest hashes, for any fractions, if a third is left to train on. Reading stops at the first
        document of the second held-out split.
        """
        named, source = self.source.named_splits, self.source
        if named >= {*source.splits} - {"train"} or not (
            named or (source.validation_fraction and source.test_fraction)
        ):
            return {}
        smallest: list[str] = []
        largest_held: list[str] = []
        seen: set[Split] = set()
        for part in reversed(range(source.parts())):  # held-out files and splits come last
            for split, document in source.read(part):
                if self._problem(document) or (named and split == "train"):
                    continue
                if split != "train":
                    seen.add(split)
                    largest_held = sorted({*largest_held, document.group}, key=name_hash)[-1:]
                if len(seen) == len(HELD_OUT):
                    return {}
                smallest = sorted({*smallest, document.group}, key=name_hash)[:3]
        if len(smallest) < (2 if named else 3):
            return {}
        if largest_held in ([], smallest[:1]):
            return {smallest[0]: "test", smallest[1]: "validation"}
        return {largest_held[0]: "validation"} if "test" in seen else {smallest[0]: "test"}

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write the Parquet file of each split of one part."""
        moved, named = self._moved, self.source.named_splits
        kept = {split: Counter[str]() for split in SPLITS}
        rejected: Counter[str] = Counter()
        grouped = 0
        examples: list[str] = []
        columns = DOCUMENT_COLUMNS.append(SCORED_FROM) if self.source.scores_parts else DOCUMENT_COLUMNS
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(DocumentsWriter(folder / documents_name(split), columns)) for split in SPLITS
            }
            for given, document in self.source.read(shard):
                split = given if named and given == "train" else moved.get(document.group, given)
                grouped += document.group != document.id
                reason = self._problem(document)
                if reason is None:
                    size = text_bytes(document.text)
                    writers[split].add(
                        {
                            "id": document.id,
                            "source": document.source,
                            "group": document.group,
                            "text": document.text,
                            "bytes": size,
                            SCORED_FROM.name: document.scored_from,
                        }
                    )
                    kept[split] += Counter(documents=1, bytes=size)
                    continue
                rejected[reason] += 1
                if len(examples) < MAX_REJECTED_EXAMPLES:
                    examples.append(f"{document.id}: {reason}")
        advance(1)
        counts: dict[str, Any] = {split: dict(kept[split]) for split in SPLITS}
        return {**counts, "grouped": grouped, "rejected": dict(rejected), "examples": examples}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Add up the counts.

        Raises:
            CorpusError: A split has no documents, or the pattern of groups matches no id.
        """
        totals: dict[str, Any] = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
        for split in SPLITS:
            totals[split] |= sum((Counter(fact[split]) for fact in facts), Counter())
        rejected = sum((Counter(fact["rejected"]) for fact in facts), Counter[str]())
        examples = [example for fact in facts for example in fact["examples"]][:MAX_REJECTED_EXAMPLES]
        skipped = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common()) or "none skipped"
        if not all(totals[split]["documents"] for split in self.source.splits):
            raise CorpusError(self._unsplit(totals, skipped))
        if self.source.group_pattern is not None and not sum(fact["grouped"] for fact in facts):
            raise CorpusError(
                f"corpus.group_pattern={self.source.group_pattern} does not match a part of any document's id, such as "
                f"{self._groups()[0].id!r}; change it, or set it to null."
            )
        return {**totals, "rejected": dict(rejected), "rejected_examples": examples}

    def _unsplit(self, totals: Mapping[str, Any], skipped: str) -> str:
        """Say why a split has no documents and what to do."""
        source = self.source
        counts = {split: totals[split]["documents"] for split in SPLITS}
        count, held = sum(counts.values()), sum(counts[split] for split in HELD_OUT)
        empty = next(split for split in source.splits if not counts[split])
        name_them = "name held-out documents by corpus.{0}_path or corpus.{0}_split"
        if "train" not in source.splits and held == 0:
            return f"The corpus has no document to score ({skipped}); check its settings."
        if count == 0 or (source.named_splits and empty == "train"):
            return f"The corpus has no document to train on ({skipped}); check corpus and its path."
        if source.named_splits and held == 0:
            return f"No document that corpus names as held out can be used ({skipped}); name others."
        if len(source.named_splits) == len(HELD_OUT):
            return f"No document that corpus names for its {empty} split can be used ({skipped}); name others."
        if source.named_splits:
            return (
                f"The {empty} split is empty: corpus names {_documents(held)} to hold out ({skipped}), which one hash "
                f"cannot divide between validation and test; add others, or {name_them.format(empty)}."
            )
        for split in HELD_OUT:
            if getattr(source, f"{split}_fraction") == 0:
                return (
                    f"corpus.{split}_fraction=0 holds out none of the {count} documents; raise it, or "
                    f"{name_them.format(split)}."
                )
        if count < len(SPLITS):
            return (
                f"The corpus is {_documents(count)} ({skipped}), and training, validation and test need one each; give "
                f"more documents, or {name_them.format('validation')}."
            )
        groups = self._groups()
        if len(groups) < len(SPLITS):
            names = " or ".join(repr(document.group) for document in groups)
            if source.is_grouped:
                return (
                    f"All {count} documents are of the group {names}, and a group is in one split; name three "
                    "groups or more by corpus.group_pattern or corpus.group_field, or set it to null."
                )
            return (
                f"All {count} documents have the id {names}, and the ids decide what is held out; set corpus.id_field "
                "to a field that differs between documents, or to null."
            )
        return (
            f"corpus.validation_fraction={source.validation_fraction:g} and corpus.test_fraction="
            f"{source.test_fraction:g} hold out all {count} documents; lower them."
        )

    def _groups(self) -> list[Document]:
        """Return one document of each of the first groups, at most three."""
        found: dict[str, Document] = {}
        for part in range(self.source.parts()):
            for _, document in self.source.read(part):
                if not self._problem(document):
                    found.setdefault(document.group, document)
                if len(found) == len(SPLITS):
                    return list(found.values())
        return list(found.values())


def _documents(count: int) -> str:
    return {1: "one document", 2: "two documents"}.get(count, f"{count} documents")
