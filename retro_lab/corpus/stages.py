"""The stages from raw documents to tokens: `documents`, `tokenizer`, `tokens`.

DocumentSource ─► documents (cleaned, split, Parquet) ─► tokenizer ─► tokens of each split

Memory is bounded whatever the size of the corpus: by a few times `ROW_GROUP_BYTES` and `LONGEST_DOCUMENT`, and, where
tokens are laid out in the end, by about 100 bytes for each document of a split (its id among them).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retro_lab.artifacts.arrays import create_array
from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.documents import SPLITS, DocumentSource, Split, rejection, text_bytes
from retro_lab.corpus.parquet import DOCUMENT_COLUMNS, DocumentsWriter, document_files, documents_name, read_documents
from retro_lab.corpus.tokenizer import DocumentTokenizer, TokenizerRecipe
from retro_lab.errors import CorpusError

MAX_REJECTED_EXAMPLES = 5


class DocumentsStage(Stage):
    """Read a source once: drop what cannot be used, count it, and write each split's documents as Parquet."""

    name = "documents"
    unit = "parts"

    def __init__(self, source: DocumentSource) -> None:
        """Read from `source`, one shard for each of its parts."""
        self.source = source

    def settings(self) -> Mapping[str, Any]:
        """What the source says its documents depend on."""
        return self.source.identity()

    def shard_sizes(self) -> Sequence[int]:
        """One shard for each part."""
        return [1] * self.source.parts()

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write `train.parquet` and `validation.parquet` of one part."""
        kept = {split: Counter[str]() for split in SPLITS}
        rejected: Counter[str] = Counter()
        examples: list[str] = []
        with ExitStack() as stack:
            writers = {split: stack.enter_context(DocumentsWriter(folder / documents_name(split))) for split in SPLITS}
            for split, document in self.source.read(shard):
                reason = document.problem or rejection(document.text)
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
        if totals["train"]["documents"] == 0:
            raise CorpusError(f"The corpus has no document to train on ({skipped}); check corpus and its path.")
        if totals["validation"]["documents"] == 0:
            raise CorpusError(
                f"The corpus has {totals['train']['documents']} documents but none is held out for validation; "
                "raise corpus.validation_fraction or name held-out documents."
            )
        return {**totals, "rejected": dict(rejected), "rejected_examples": examples}


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
    smaller retrieval database is then a range of chunks.
    """

    name = "tokens"
    version = 2
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

    def _parts(self) -> list[Path]:
        return document_files(self.documents, self.split)

    def shard_sizes(self) -> Sequence[int]:
        """Documents in each part."""
        return [pq.ParquetFile(path).metadata.num_rows for path in self._parts()]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Encode one part: its documents' tokens end to end without padding, and a table of the documents."""
        tokenizer = DocumentTokenizer.load(self.tokenizer.folder / "00000")
        lengths: list[int] = []
        table: list[pa.RecordBatch] = []
        with (folder / "tokens.bin").open("wb") as file:
            for batch in read_documents(self._parts()[shard]):
                for ids in tokenizer.encode(batch["text"].to_pylist()):
                    lengths.append(len(ids))
                    ids.tofile(file)
                table.append(batch.select(["id", "source", "bytes"]))
                advance(batch.num_rows)
        schema = DOCUMENT_COLUMNS.remove(DOCUMENT_COLUMNS.get_field_index("text"))
        documents = pa.Table.from_batches(table, schema=schema).append_column("tokens", pa.array(lengths, pa.int64()))
        pq.write_table(documents, folder / "documents.parquet")
        return {}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Lay the documents out in shuffled order, each on a chunk boundary.

        Raises:
            CorpusError: The training split holds less than one full chunk of text.
        """
        tokenizer = DocumentTokenizer.load(self.tokenizer.folder / "00000")
        pieces = [_mapped(shard / "tokens.bin", tokenizer.dtype) for shard in shards]
        tables = [pq.read_table(shard / "documents.parquet") for shard in shards]
        documents = pa.concat_tables(tables)
        lengths = documents["tokens"].to_numpy()
        if self.split == "train" and lengths.max(initial=0) <= self.chunk_length:
            raise CorpusError(
                f"No document of the corpus is longer than one chunk ({self.chunk_length} tokens); "
                "use longer documents or a smaller model.chunk_length."
            )
        order = np.random.default_rng(self.seed).permutation(len(lengths))
        owner = np.repeat(np.arange(len(pieces)), [table.num_rows for table in tables])
        first = np.concatenate([_starts(table["tokens"].to_numpy()) for table in tables])
        chunk_counts = -(-lengths[order] // self.chunk_length)
        start = np.concatenate([[0], np.cumsum(chunk_counts)])

        # One chunk of padding at the end lets every neighbor's continuation be read without a bounds check.
        shape = ((int(start[-1]) + 1) * self.chunk_length,)
        tokens = create_array(folder / "tokens.npy", tokenizer.dtype, shape)
        tokens[:] = tokenizer.document_marker
        left = create_array(folder / "tokens_left.npy", np.uint32, (int(start[-1]) + 1,))
        for place, after, document in zip(start, start[1:], order, strict=False):
            begin, length = first[document], lengths[document]
            at = int(place) * self.chunk_length
            tokens[at : at + length] = pieces[owner[document]][begin : begin + length]
            left[place:after] = length - self.chunk_length * np.arange(after - place)
        tokens.flush()
        left.flush()
        np.save(folder / "document_start.npy", start.astype(np.int64))
        np.save(folder / "document_length.npy", lengths[order].astype(np.int64))
        np.save(folder / "document_bytes.npy", documents["bytes"].to_numpy()[order].astype(np.int64))
        pq.write_table(documents.select(["id", "source"]).take(pa.array(order)), folder / "documents.parquet")
        return {
            "documents": len(lengths),
            "chunks": int(start[-1]),
            "tokens": int(lengths.sum()),
            "bytes": pc.sum(documents["bytes"]).as_py() or 0,
        }


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Offsets at which pieces of these lengths begin when laid end to end."""
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else np.zeros(0, np.int64)


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """Map a raw file of ids; an empty one, which cannot be mapped, is an empty array."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
