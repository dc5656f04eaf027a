"""The token store: one flat array of token ids in which every document starts on a chunk boundary.

    document 0            document 1                 document 2
    |c0      |c1      |c2 ....|c3      |c4      |c5 .......|c6 ...          (. = padding)

So a chunk id is a position divided by m, a training sequence is l consecutive chunk ids, its neighbors are one slice
of the neighbor table, and a neighbor with its continuation is two consecutive chunks, cut at the document's end.

Memory does not grow with the text: building takes some 300 MB for row groups, 125 bytes for each byte of the longest
document while it is encoded, and, at the end, about 180 bytes for each document.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_lab.artifacts.manifest import damaged
from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.documents import HELD_OUT, Split, text_bytes
from retro_lab.corpus.layout import (
    BYTES_NAME,
    ENCODED_NAME,
    GROUP_NAME,
    LEFT_NAME,
    LENGTH_NAME,
    SCORED_BYTES,
    SCORED_BYTES_NAME,
    SCORED_FROM_NAME,
    SCORED_TOKEN,
    START_NAME,
    TABLE_NAME,
    TOKENS_NAME,
    TokenLayout,
)
from retro_lab.corpus.parquet import DOCUMENT_COLUMNS, SCORED_FROM, Piece, by_bytes, pieces
from retro_lab.corpus.round_trip import differences
from retro_lab.corpus.tokenizer import DocumentTokenizer

READ_AT_ONCE = 65_536
"""Chunks whose tokens are counted together."""
ENCODED_BYTES = 2**20
"""Bytes of text encoded at once, or one longer document: encoding takes about 125 bytes of memory for each."""


@dataclass(frozen=True)
class TokensFacts:
    """Facts of a `tokens` artifact."""

    documents: int
    chunks: int
    tokens: int
    """Tokens without padding, including document markers."""
    bytes: int
    """UTF-8 bytes of the documents' text."""
    altered: int
    """Number of held-out documents whose tokens do not decode to their text."""
    altered_examples: list[str]


class TokensStage(Stage):
    """Encode one split into the flat token array that all later stages read (`TokenStore`).

    Documents are shuffled once, so that the first part of the array is a random sample of them: a smaller retrieval
    database is then a range of chunks. A shard is one piece of the split, up to 64 MiB of text.

    Bits per byte divide by the bytes of the held-out documents, so both held-out splits are decoded as well: `altered`
    in the facts counts the documents that do not decode to their text.

    Of documents that are scored in part, the first scored token is the first that stands for a character of the scored
    part, so a token across its beginning is scored whole. The bytes are those of the scored part exactly.
    """

    name = "tokens"
    version = 5
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
        """Return split, chunk length and seed of the shuffle."""
        return {"split": self.split, "chunk_length": self.chunk_length, "seed": self.seed}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return documents and tokenizer."""
        return {"documents": self.documents, "tokenizer": self.tokenizer}

    def libraries(self) -> Mapping[str, int]:
        """Return the library that encodes."""
        return {"tokenizers": 2}

    @cached_property
    def _pieces(self) -> list[Piece]:
        return pieces(self.documents, self.split)

    def shard_sizes(self) -> Sequence[int]:
        """Return the documents in each piece."""
        return [piece.documents for piece in self._pieces]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Encode one piece: the tokens of its documents, concatenated without padding, and a table of the documents."""
        tokenizer = DocumentTokenizer.load(self.tokenizer.shard(0))
        schema = DOCUMENT_COLUMNS.remove(DOCUMENT_COLUMNS.get_field_index("text"))
        lengths: list[int] = []
        scored: dict[str, list[int]] = {SCORED_TOKEN: [], SCORED_BYTES: []}
        altered: list[str] = []
        table: list[pa.RecordBatch] = []
        with (folder / ENCODED_NAME).open("wb") as file:
            for batch in self._pieces[shard].read():
                for group in by_bytes(batch, ENCODED_BYTES):
                    texts = group["text"].to_pylist()
                    encoded = tokenizer.encode(texts)
                    for ids in encoded:
                        ids.tofile(file)
                    if self.split in HELD_OUT:
                        altered += differences(texts, tokenizer.decode(encoded))
                    lengths += [len(ids) for ids in encoded]
                    if SCORED_FROM.name in group.schema.names:
                        for text, start in zip(texts, group[SCORED_FROM.name].to_pylist(), strict=True):
                            scored[SCORED_TOKEN].append(tokenizer.token_at(text, start))
                            scored[SCORED_BYTES].append(text_bytes(text[start:]))
                table.append(batch.select(schema.names))
                advance(batch.num_rows)
        documents = pa.Table.from_batches(table, schema=schema).append_column("tokens", pa.array(lengths, pa.int64()))
        for name, values in scored.items():
            if values:
                documents = documents.append_column(name, pa.array(values, pa.int64()))
        pq.write_table(documents, folder / TABLE_NAME)
        return {"altered": len(altered), "altered_examples": altered[:1]}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Lay the documents out in shuffled order, each on a chunk boundary."""
        tokenizer = DocumentTokenizer.load(self.tokenizer.shard(0))
        layout = TokenLayout(shards, self.chunk_length, self.seed)
        layout.write(folder, tokenizer.dtype, tokenizer.document_marker)
        total = TokensFacts(
            documents=len(layout.lengths),
            chunks=layout.chunks,
            tokens=int(layout.lengths.sum()),
            bytes=int(layout.bytes.sum()),
            altered=sum(fact["altered"] for fact in facts),
            altered_examples=[example for fact in facts for example in fact["altered_examples"]][:1],
        )
        return asdict(total)


class TokenStore:
    """Read-only view of a `tokens` artifact. m is the chunk length, C the number of chunks."""

    def __init__(self, tokens: Artifact, tokenizer: Artifact) -> None:
        """Open the memory maps of `tokens`, and the tokenizer that encoded them.

        Raises:
            ArtifactError: The files contradict each other about documents and chunks.
        """
        self.artifact = tokens
        self._tokenizer_artifact = tokenizer
        self.tokenizer = DocumentTokenizer.load(tokenizer.shard(0))
        self._vocabulary_size = self.tokenizer.vocabulary_size
        self.chunk_length: int = tokens.settings["chunk_length"]
        self.facts = tokens.read_facts(TokensFacts)
        self.chunks = self.facts.chunks
        self.document_start = tokens.array(START_NAME)
        """First chunk of each document, and C at the end, [documents + 1]."""
        self.document_length = tokens.array(LENGTH_NAME)
        """Tokens of each document, including its marker, [documents]."""
        self.document_bytes = tokens.array(BYTES_NAME)
        """UTF-8 bytes of each document's text, [documents]."""
        in_part = SCORED_FROM_NAME in tokens.manifest.files
        self.scored_from = tokens.array(SCORED_FROM_NAME) if in_part else np.ones_like(self.document_length)
        """Place of each document's first scored token, after its marker at 0, [documents]."""
        self.scored_bytes = tokens.array(SCORED_BYTES_NAME) if in_part else self.document_bytes
        """UTF-8 bytes of each document's scored text, [documents]."""
        self._group = tokens.array(GROUP_NAME)
        # Plain views of the memory maps: indexing np.memmap itself is slower.
        self._rows = np.asarray(tokens.array(TOKENS_NAME)).reshape(-1, self.chunk_length)
        self._left = np.asarray(tokens.array(LEFT_NAME))
        self._check_documents()

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Artifact, Artifact]]:
        """Have a copy in another process open the memory maps itself; pickling them would copy what they map."""
        return TokenStore, (self.artifact, self._tokenizer_artifact)

    def _check_documents(self) -> None:
        """Compare the tables of documents with each other and with their sums; nothing else checks large ones."""
        folder = self.artifact.folder
        chunks = -(-np.asarray(self.document_length) // self.chunk_length)
        for name, table, total in (
            (LENGTH_NAME, self.document_length, self.facts.tokens),
            (BYTES_NAME, self.document_bytes, self.facts.bytes),
        ):
            if int(table.sum()) != total:
                raise damaged(folder / name, f"it does not add up to {total}")
        if self.document_start[0] != 0 or not np.array_equal(np.diff(self.document_start), chunks):
            raise damaged(folder / START_NAME, "documents do not begin where others end")
        if (
            len(self.scored_from) != len(chunks)
            or not ((self.scored_from >= 1) & (self.scored_from <= self.document_length)).all()
        ):
            raise damaged(folder / SCORED_FROM_NAME, "it names a token that is not in its document")
        if len(self.scored_bytes) != len(chunks) or not (self.scored_bytes <= self.document_bytes).all():
            raise damaged(folder / SCORED_BYTES_NAME, "a document has fewer bytes")
        group, documents = np.asarray(self._group), np.arange(len(chunks))
        if not (
            len(group) == len(documents)
            and ((group >= 0) & (group <= documents)).all()
            and np.array_equal(group[group], group)
        ):
            raise damaged(folder / GROUP_NAME, "it does not name the first document of each group")
        for name, rows in ((TOKENS_NAME, self._rows), (LEFT_NAME, self._left)):
            if len(rows) != self.chunks + 1:
                raise damaged(folder / name, f"it does not hold {self.chunks} chunks and padding")

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.document_length)

    @property
    def documents_table(self) -> Path:
        """Parquet file with the `id`, `source` and `group` of each document, in the store's order."""
        return self.artifact.folder / TABLE_NAME

    def document_ids(self, documents: np.ndarray) -> list[str]:
        """Return the ids of documents, from the row groups of the table of all that they are in."""
        with pq.ParquetFile(self.documents_table) as file:
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = np.cumsum(rows)
            groups = np.searchsorted(ends, documents, side="right")
            ids = {int(group): file.read_row_group(int(group), columns=["id"])["id"] for group in np.unique(groups)}
        places = documents - (ends - rows)[groups]
        return [str(ids[int(group)][int(place)].as_py()) for group, place in zip(groups, places, strict=True)]

    def read(self, chunks: np.ndarray, count: int = 1) -> np.ndarray:
        """Read `count` consecutive chunks from each of `chunks` on, [..., count x m]; padding follows the last chunk.

        Raises:
            ArtifactError: A token is not in the vocabulary.
        """
        rows = chunks[..., None] + np.arange(count)
        tokens = np.empty((*rows.shape, self.chunk_length), self._rows.dtype)
        np.take(self._rows, rows, axis=0, out=tokens, mode="clip")  # the last row is padding
        if (largest := tokens.max(initial=0)) >= self._vocabulary_size:
            reason = f"token {largest} of a vocabulary of {self._vocabulary_size}"
            raise damaged(self.artifact.folder / TOKENS_NAME, reason)
        return tokens.reshape(*chunks.shape, count * self.chunk_length)

    def document_of(self, chunks: np.ndarray) -> np.ndarray:
        """Return the document that each chunk belongs to."""
        return np.searchsorted(self.document_start, chunks, side="right") - 1

    def group_of(self, chunks: np.ndarray) -> np.ndarray:
        """Return the first document of the group that each chunk belongs to; its document if all are on their own."""
        return self._group[self.document_of(chunks)]

    def real_tokens(self, chunks: np.ndarray, count: int = 1) -> np.ndarray:
        """Return how many tokens, from each chunk's first on, belong to its document, at most `count` x m; int64."""
        left = np.take(self._left, chunks, mode="clip")
        return np.minimum(left, count * self.chunk_length).astype(np.int64)

    def starts_document(self, chunks: np.ndarray) -> np.ndarray:
        """Return which chunks are the first of their document, and so begin with its marker."""
        return (chunks == 0) | (np.take(self._left, chunks - 1, mode="clip") <= self.chunk_length)

    def chunk_bytes(self, documents: int) -> np.ndarray:
        """Return the UTF-8 bytes of the scored text in each chunk of the first documents.

        A document's bytes are divided among its chunks by the bytes that their scored tokens stand for. For a
        byte-level tokenizer the result is exact: a character that two chunks share counts in each with the bytes that
        it has there.

        Args:
            documents: How many documents, 1 or more.

        Returns:
            int64 [chunks of these documents]; the chunks of a document add up to `scored_bytes`.
        """
        start = np.asarray(self.document_start[: documents + 1]).astype(np.int64)
        weights = np.empty(start[-1], np.int64)
        for first in range(0, len(weights), READ_AT_ONCE):
            chunks = np.arange(first, min(first + READ_AT_ONCE, len(weights)))
            places = np.arange(self.chunk_length)
            document = self.document_of(chunks)
            before = self.scored_from[document] - (chunks - start[document]) * self.chunk_length
            scored = (places < self.real_tokens(chunks)[:, None]) & (places >= before[:, None])
            weights[chunks] = (self.tokenizer.token_bytes[self.read(chunks)] * scored).sum(1)
        # Where the text up to the end of each chunk ends, in bytes: rounded down, and whole after the last chunk.
        document = np.repeat(np.arange(documents), np.diff(start))
        sums = np.concatenate([[0], np.cumsum(weights)])
        before, whole = sums[start[:-1]], np.diff(sums[start])
        sizes = self.scored_bytes[:documents].astype(np.int64)
        ends = (sums[1:] - before[document]) * sizes[document] // np.maximum(1, whole)[document]
        ends[start[1:] - 1] = sizes
        shares = np.diff(ends, prepend=0)
        shares[start[:-1]] = ends[start[:-1]]
        return shares

    def texts(self, chunks: np.ndarray, count: int = 1) -> list[str]:
        """Decode each chunk, with the next `count` - 1 of its document, to text."""
        tokens = self.read(chunks, count)
        lengths = self.real_tokens(chunks, count)
        return self.tokenizer.decode(row[:length] for row, length in zip(tokens, lengths, strict=True))
