"""The token store: one flat array of token ids in which every document starts on a chunk boundary.

    document 0            document 1                 document 2
    |c0      |c1      |c2 ....|c3      |c4      |c5 .......|c6 ...          (. = padding)

So a chunk id is a position divided by m, a training sequence is l consecutive chunk ids, its neighbors are one slice
of the neighbor table, and a neighbor with its continuation is two consecutive chunks cut at the document's end.
"""

from pathlib import Path

import numpy as np

from retro_lab.artifacts.manifest import damaged
from retro_lab.artifacts.stage import Artifact
from retro_lab.corpus.tokenizer import DocumentTokenizer


class TokenStore:
    """Read-only view of a `tokens` artifact. m is the chunk length, C the number of chunks."""

    def __init__(self, tokens: Artifact, tokenizer: Artifact) -> None:
        """Open the memory maps of `tokens` and the tokenizer they were made with.

        Raises:
            ArtifactError: What the files say of documents and chunks cannot be true.
        """
        self.artifact = tokens
        self.tokenizer = DocumentTokenizer.load(tokenizer.folder / "00000")
        self._vocabulary_size = self.tokenizer.vocabulary_size
        self.chunk_length: int = tokens.manifest.recipe["settings"]["chunk_length"]
        self.chunks: int = tokens.facts["chunks"]
        self.document_start = tokens.array("document_start.npy")
        """First chunk of each document, and C at the end, [documents + 1]."""
        self.document_length = tokens.array("document_length.npy")
        """Tokens of each document, its marker among them, [documents]."""
        self.document_bytes = tokens.array("document_bytes.npy")
        """UTF-8 bytes of each document's text, [documents]."""
        # As plain arrays, which NumPy reads from with less ado than from memory maps; they stay maps of the files.
        self._rows = np.asarray(tokens.array("tokens.npy")).reshape(-1, self.chunk_length)
        self._left = np.asarray(tokens.array("tokens_left.npy"))
        self._check_documents()

    def _check_documents(self) -> None:
        """Compare the tables of documents with each other and with their sums; where they are large, only this does."""
        folder, facts = self.artifact.folder, self.artifact.facts
        chunks = -(-np.asarray(self.document_length) // self.chunk_length)
        for name, sums in (("length", facts["tokens"]), ("bytes", facts["bytes"])):
            if int(getattr(self, f"document_{name}").sum()) != sums:
                raise damaged(folder / f"document_{name}.npy", f"it does not add up to {sums}")
        if self.document_start[0] != 0 or not np.array_equal(np.diff(self.document_start), chunks):
            raise damaged(folder / "document_start.npy", "documents do not begin where others end")
        for name, rows in (("tokens", self._rows), ("tokens_left", self._left)):
            if len(rows) != self.chunks + 1:
                raise damaged(folder / f"{name}.npy", f"it does not hold {self.chunks} chunks and padding")

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.document_length)

    @property
    def documents_table(self) -> Path:
        """Parquet file with the `id` and `source` of each document, in the store's order."""
        return self.artifact.folder / "documents.parquet"

    def read(self, chunks: np.ndarray, count: int = 1) -> np.ndarray:
        """Read `count` consecutive chunks from each of `chunks`, [..., count x m]; what follows chunk C is padding.

        Raises:
            ArtifactError: A token is beyond the vocabulary.
        """
        rows = chunks[..., None] + np.arange(count)
        tokens = np.empty((*rows.shape, self.chunk_length), self._rows.dtype)
        np.take(self._rows, rows, axis=0, out=tokens, mode="clip")  # the last row is padding
        if (largest := tokens.max(initial=0)) >= self._vocabulary_size:
            reason = f"token {largest} of a vocabulary of {self._vocabulary_size}"
            raise damaged(self.artifact.folder / "tokens.npy", reason)
        return tokens.reshape(*chunks.shape, count * self.chunk_length)

    def document_of(self, chunks: np.ndarray) -> np.ndarray:
        """Return the document that each chunk belongs to."""
        return np.searchsorted(self.document_start, chunks, side="right") - 1

    def real_tokens(self, chunks: np.ndarray, count: int = 1) -> np.ndarray:
        """Return how many tokens from each chunk's first are of its own document, at most `count` x m; int64."""
        left = np.take(self._left, chunks, mode="clip")
        return np.minimum(left, count * self.chunk_length).astype(np.int64)

    def starts_document(self, chunks: np.ndarray) -> np.ndarray:
        """Tell which chunks are the first of their document, and so begin with its marker."""
        return (chunks == 0) | (np.take(self._left, chunks - 1, mode="clip") <= self.chunk_length)

    def texts(self, chunks: np.ndarray, count: int = 1) -> list[str]:
        """Decode each chunk (with `count` - 1 that follow it in its document) to text."""
        tokens = self.read(chunks, count)
        lengths = self.real_tokens(chunks, count)
        return self.tokenizer.decode(row[:length] for row, length in zip(tokens, lengths, strict=True))
