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
from retro_lab.corpus.documents import SPLITS, Document, DocumentSource, Split, id_hash, rejection, text_bytes
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
    version = 2
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
    def _held_out_anyway(self) -> str | None:
        """Id of the document that is held out although its hash does not say so: that of the smallest hash.

        There is none where another document is held out, as in all but small corpora: reading ends at the first.
        """
        if self.source.has_validation_split or not self.source.validation_fraction:
            return None
        smallest, different = None, False
        for part in range(self.source.parts()):
            for split, document in self.source.read(part):
                if self._problem(document):
                    continue
                if split == "validation":
                    return None
                different = different or smallest not in (None, document.id)
                smallest = document.id if smallest is None else min(smallest, document.id, key=id_hash)
        return smallest if different else None

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write `train.parquet` and `validation.parquet` of one part."""
        anyway = self._held_out_anyway
        kept = {split: Counter[str]() for split in SPLITS}
        rejected: Counter[str] = Counter()
        examples: list[str] = []
        with ExitStack() as stack:
            writers = {split: stack.enter_context(DocumentsWriter(folder / documents_name(split))) for split in SPLITS}
            for given, document in self.source.read(shard):
                split: Split = "validation" if document.id == anyway else given
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
        return {**{split: dict(kept[split]) for split in SPLITS}, "rejected": dict(rejected), "examples": examples}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Add up the counts.

        Raises:
            CorpusError: No document is left to train on, or none to validate on.
        """
        totals: dict[str, Any] = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
        for split in SPLITS:
            totals[split] |= sum((Counter(fact[split]) for fact in facts), Counter())
        rejected = sum((Counter(fact["rejected"]) for fact in facts), Counter[str]())
        examples = [example for fact in facts for example in fact["examples"]][:MAX_REJECTED_EXAMPLES]
        skipped = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common()) or "none skipped"
        if not all(totals[split]["documents"] for split in SPLITS):
            raise CorpusError(self._unsplit(shards, totals, skipped))
        return {**totals, "rejected": dict(rejected), "rejected_examples": examples}

    def _unsplit(self, shards: Sequence[Path], totals: Mapping[str, Any], skipped: str) -> str:
        """Say why a split has no documents, and what to do."""
        counts = {split: totals[split]["documents"] for split in SPLITS}
        count, fraction = sum(counts.values()), self.source.validation_fraction
        if count == 0 or (self.source.has_validation_split and counts["train"] == 0):
            return f"The corpus has no document to train on ({skipped}); check corpus and its path."
        if self.source.has_validation_split:
            return f"No document that corpus names as held out can be used ({skipped}); name others."
        name = "name held-out documents by corpus.validation_path or corpus.validation_split"
        if fraction == 0:
            return f"corpus.validation_fraction=0 holds out none of the {count} documents; raise it, or {name}."
        if count == 1:
            return (
                f"The corpus is one document ({skipped}), and so none is left to train on once it is held out; give "
                f"more documents, or {name}."
            )
        ids = {
            identifier
            for split in SPLITS
            for shard in shards
            for batch in read_documents(shard / documents_name(split), ["id"])
            for identifier in batch["id"].to_pylist()
        }
        if len(ids) == 1:
            return (
                f"All {count} documents have the id {ids.pop()!r}, and the ids decide what is held out; set "
                "corpus.id_field to a field that differs between documents, or to null."
            )
        return f"corpus.validation_fraction={fraction:g} holds out all {count} documents; lower it."


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

    Bits per byte count the bytes of the held-out documents, so these are decoded too: `altered` in the facts tells how
    many of them do not give their text back, with an example.
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
                    if self.split == "validation":
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
