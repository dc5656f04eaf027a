"""The stages from raw documents to tokens: `documents`, `tokenizer`, `tokens`.

DocumentSource ─► documents (cleaned, split, Parquet) ─► tokenizer ─► tokens of each split

Memory is bounded whatever the size of the corpus: some 300 MB for row groups of text, 125 bytes for each byte of the
longest document while it is encoded and, where tokens are laid out in the end, about 90 bytes for each document.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retro_lab.artifacts.stage import Advance, Artifact, Stage
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
from retro_lab.corpus.layout import TokenLayout
from retro_lab.corpus.parquet import (
    DOCUMENT_COLUMNS,
    DocumentsWriter,
    Piece,
    by_bytes,
    document_files,
    documents_name,
    pieces,
    read_documents,
)
from retro_lab.corpus.round_trip import differences
from retro_lab.corpus.tokenizer import DocumentTokenizer, TokenizerRecipe
from retro_lab.errors import CorpusError

MAX_REJECTED_EXAMPLES = 5
ENCODED_BYTES = 2**20
"""Text encoded at once, or one document where that is longer: encoding takes about 125 bytes for each."""


class DocumentsStage(Stage):
    """Read a source once: drop what cannot be used, count it, and write each split's documents as Parquet."""

    name = "documents"
    version = 3
    unit = "parts"

    def __init__(self, source: DocumentSource) -> None:
        """Read from `source`, one shard for each of its parts."""
        self.source = source

    def settings(self) -> Mapping[str, Any]:
        """What the source says its documents depend on, and how long they may be."""
        return {**self.source.identity(), "max_document_bytes": self.source.max_document_bytes}

    def shard_sizes(self) -> Sequence[int]:
        """One shard for each part."""
        return [1] * self.source.parts()

    def _problem(self, document: Document) -> str | None:
        """Why a document cannot be used; None where it can."""
        return document.problem or rejection(document.text, self.source.max_document_bytes)

    @cached_property
    def _moved(self) -> Mapping[str, Split]:
        """Groups of documents that are in another held-out split than the source says, as one would be empty otherwise.

        Groups are held out from the smallest hash on, first for the test split. So of a small corpus those of the two
        smallest hashes are held out, whatever the fractions, where a third is left to train on. Reading ends at the
        first document of the second held-out split.
        """
        named, source = self.source.named_splits, self.source
        if len(named) == len(HELD_OUT) or not (named or (source.validation_fraction and source.test_fraction)):
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
        with ExitStack() as stack:
            writers = {split: stack.enter_context(DocumentsWriter(folder / documents_name(split))) for split in SPLITS}
            for given, document in self.source.read(shard):
                split = given if named and given == "train" else moved.get(document.group, given)
                grouped += document.group != document.id
                reason = self._problem(document)
                if reason is None:
                    size = text_bytes(document.text)
                    writers[split].add(
                        {"id": document.id, "source": document.source, "text": document.text, "bytes": size}
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
            CorpusError: A split has no document, or the pattern of groups matches no id.
        """
        totals: dict[str, Any] = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
        for split in SPLITS:
            totals[split] |= sum((Counter(fact[split]) for fact in facts), Counter())
        rejected = sum((Counter(fact["rejected"]) for fact in facts), Counter[str]())
        examples = [example for fact in facts for example in fact["examples"]][:MAX_REJECTED_EXAMPLES]
        skipped = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common()) or "none skipped"
        if not all(totals[split]["documents"] for split in SPLITS):
            raise CorpusError(self._unsplit(totals, skipped))
        if self.source.group_pattern is not None and not sum(fact["grouped"] for fact in facts):
            raise CorpusError(
                f"corpus.group_pattern={self.source.group_pattern} matches a part of no document's id, such as "
                f"{self._groups()[0].id!r}; change it, or set it to null."
            )
        return {**totals, "rejected": dict(rejected), "rejected_examples": examples}

    def _unsplit(self, totals: Mapping[str, Any], skipped: str) -> str:
        """Say why a split has no documents, and what to do."""
        source = self.source
        counts = {split: totals[split]["documents"] for split in SPLITS}
        count, held = sum(counts.values()), sum(counts[split] for split in HELD_OUT)
        empty = next(split for split in SPLITS if not counts[split])
        name_them = "name held-out documents by corpus.{0}_path or corpus.{0}_split"
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
        """Return a document of each of the first groups, at most three."""
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


def iterate_texts(documents: Artifact, split: Split, max_bytes: float) -> Iterator[str]:
    """Yield the texts of a split in order until `max_bytes` of UTF-8 have been given out."""
    for path in document_files(documents, split):
        for batch in read_documents(path, ["text", "bytes"]):
            for text, size in zip(batch["text"].to_pylist(), batch["bytes"].to_pylist(), strict=True):
                if max_bytes <= 0:
                    return
                max_bytes -= size
                yield text


class TokenizerStage(Stage):
    """Train or fetch the tokenizer and keep it as one `tokenizer.json`."""

    name = "tokenizer"
    version = 2
    unit = "tokenizers"

    def __init__(self, recipe: TokenizerRecipe, documents: Artifact) -> None:
        """Make the tokenizer of `recipe`, which may or may not learn from `documents`."""
        self.tokenizer_recipe = recipe
        self.documents = documents

    def settings(self) -> Mapping[str, Any]:
        """The recipe's own settings."""
        return self.tokenizer_recipe.identity()

    def inputs(self) -> Mapping[str, Artifact]:
        """The documents, for a tokenizer that is trained on them."""
        return {"documents": self.documents} if self.tokenizer_recipe.learns else {}

    def libraries(self) -> Mapping[str, int]:
        """The one that learns vocabularies and writes `tokenizer.json`."""
        return {"tokenizers": 2}

    def shard_sizes(self) -> Sequence[int]:
        """One piece of work."""
        return [1]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write `tokenizer.json`."""
        limit = self.tokenizer_recipe.training_bytes
        tokenizer = self.tokenizer_recipe.make(iterate_texts(self.documents, "train", limit))
        tokenizer.save(folder)
        advance(1)
        return {"vocabulary_size": tokenizer.vocabulary_size, "document_marker": tokenizer.document_marker}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Pass the facts of the only shard on."""
        return facts[0]


class TokensStage(Stage):
    """Encode one split into the flat token array that everything after reads (`retro_lab.corpus.tokens`).

    Documents are shuffled, once and for good, so that the first part of the array is a random sample of them: a
    smaller retrieval database is then a range of chunks. A shard is one piece of the split, up to 64 MiB of text.

    Bits per byte count the bytes of the held-out documents, so those of both splits are decoded too: `altered` in the
    facts tells how many of them do not give their text back, with an example.
    """

    name = "tokens"
    version = 4
    unit = "documents"
    combines_shards = True

    def __init__(self, documents: Artifact, tokenizer: Artifact, split: Split, chunk_length: int, seed: int) -> None:
        """Encode the documents of `split`, each padded to a multiple of `chunk_length` tokens."""
        self.documents = documents
        self.tokenizer = tokenizer
        self.split: Split = split
        self.chunk_length = chunk_length
        self.seed = seed

    def settings(self) -> Mapping[str, Any]:
        """Split, chunk length and seed of the shuffle."""
        return {"split": self.split, "chunk_length": self.chunk_length, "seed": self.seed}

    def inputs(self) -> Mapping[str, Artifact]:
        """Documents and tokenizer."""
        return {"documents": self.documents, "tokenizer": self.tokenizer}

    def libraries(self) -> Mapping[str, int]:
        """The one that encodes."""
        return {"tokenizers": 2}

    @cached_property
    def _pieces(self) -> list[Piece]:
        return pieces(self.documents, self.split)

    def shard_sizes(self) -> Sequence[int]:
        """Documents in each piece."""
        return [piece.documents for piece in self._pieces]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Encode one piece: its documents' tokens end to end without padding, and a table of the documents."""
        tokenizer = DocumentTokenizer.load(self.tokenizer.folder / "00000")
        schema = DOCUMENT_COLUMNS.remove(DOCUMENT_COLUMNS.get_field_index("text"))
        lengths: list[int] = []
        altered: list[str] = []
        table: list[pa.RecordBatch] = []
        with (folder / "tokens.bin").open("wb") as file:
            for batch in self._pieces[shard].read():
                for texts in by_bytes(batch, ENCODED_BYTES):
                    encoded = tokenizer.encode(texts)
                    for ids in encoded:
                        ids.tofile(file)
                    if self.split in HELD_OUT:
                        altered += differences(texts, tokenizer.decode(encoded))
                    lengths += [len(ids) for ids in encoded]
                table.append(batch.select(schema.names))
                advance(batch.num_rows)
        documents = pa.Table.from_batches(table, schema=schema).append_column("tokens", pa.array(lengths, pa.int64()))
        pq.write_table(documents, folder / "documents.parquet")
        return {"altered": len(altered), "altered_examples": altered[:1]}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Lay the documents out in shuffled order, each on a chunk boundary; a short one is one chunk."""
        tokenizer = DocumentTokenizer.load(self.tokenizer.folder / "00000")
        layout = TokenLayout(shards, self.chunk_length, self.seed)
        layout.write(folder, tokenizer.dtype, tokenizer.document_marker)
        return {
            "documents": len(layout.lengths),
            "chunks": layout.chunks,
            "tokens": int(layout.lengths.sum()),
            "bytes": int(layout.bytes.sum()),
            "altered": sum(fact["altered"] for fact in facts),
            "altered_examples": [example for fact in facts for example in fact["altered_examples"]][:1],
        }
