"""Near-copies among training documents, found by MinHash with locality-sensitive hashing.

Two documents are compared by the Jaccard similarity of their sets of 13-grams, the size of the intersection over that
of the union. A signature is cut into bands, and documents that agree in a band are compared. This misses at most 1 in
10,000 pairs that are just similar enough; the sets themselves decide.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasketch import MinHash

from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.filtering import MAX_EXAMPLES
from retro_lab.corpus.grams import WORDS_IN_GRAM, grams_of, jaccard
from retro_lab.corpus.parquet import Piece, pieces
from retro_lab.errors import ConfigurationError

PERMUTATIONS = 128
RECALL = 0.9999
"""Least probability of comparing the sets of two documents that are just similar enough."""
GRAMS_AT_ONCE = 4096
GRAMS_NAME, SIZES_NAME, KEYS_NAME, IDS_NAME = "grams.bin", "sizes.npy", "keys.npy", "ids.parquet"
"""Files of a shard: concatenated grams, the number of each document's, a key for each of its bands, ids."""
COPIES_NAME = "copy_of.npy"
NO_COPY = -1
FACTORS = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(PERMUTATIONS)], np.uint64)


@dataclass(frozen=True)
class NearCopiesFacts:
    """Facts of a `near_copies` artifact."""

    documents: int
    """Documents to train on that nearly copy one before them."""
    examples: list[str]


class NearCopiesStage(Stage):
    """For each training document, which one before it it nearly copies.

    A document is a near-copy if its similarity to an earlier one that is none itself is large enough: of several
    near-copies, the first in the documents' order is the original.

    A shard is one piece of the training split. Its grams take 8 bytes for each word on the disk until the stage is
    finished. Finishing compares all documents in one process, whose memory is 40 bytes for each document and 40 for
    each band in which it agrees with another, 1 KB at most at a similarity of 0.8; grams are memory-mapped.
    """

    name = "near_copies"
    unit = "documents"
    combines_shards = True

    def __init__(self, documents: Artifact, similarity: float) -> None:
        """Compare the training split of `documents`; a near-copy has at least the given Jaccard `similarity`.

        Raises:
            ConfigurationError: The similarity is not above 0 and at most 1.
        """
        if not 0 < similarity <= 1:
            raise ConfigurationError(
                f"deduplication.similarity={similarity} is not above 0 and at most 1; null drops no document."
            )
        self.documents = documents
        self.similarity = similarity

    def settings(self) -> Mapping[str, Any]:
        """Return the similarity, the words in a gram and the permutations."""
        return {"similarity": self.similarity, "words_in_gram": WORDS_IN_GRAM, "permutations": PERMUTATIONS}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the documents."""
        return {"documents": self.documents}

    def libraries(self) -> Mapping[str, int]:
        """Return the library that makes signatures."""
        return {"datasketch": 1}

    @cached_property
    def _pieces(self) -> list[Piece]:
        return pieces(self.documents, "train")

    def shard_sizes(self) -> Sequence[int]:
        """Return the training documents in each piece."""
        return [piece.documents for piece in self._pieces]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write the documents' grams, concatenated, how many each has, the keys of its bands, and its id."""
        count, rows = bands(self.similarity)
        ids: list[str] = []
        sizes: list[int] = []
        keys: list[np.ndarray] = []
        with (folder / GRAMS_NAME).open("wb") as file:
            for batch in self._pieces[shard].read(["id", "text"]):
                for row in batch.to_pylist():
                    grams = grams_of(row["text"])
                    grams.tofile(file)
                    ids.append(row["id"])
                    sizes.append(len(grams))
                    banded = signature(grams)[: count * rows].reshape(count, rows)
                    keys.append((banded * FACTORS[:rows]).sum(1, dtype=np.uint64))
                advance(batch.num_rows)
        np.save(folder / SIZES_NAME, np.array(sizes, np.int64))
        np.save(folder / KEYS_NAME, np.array(keys, np.uint64))
        pq.write_table(pa.table({"id": pa.array(ids, pa.large_string())}), folder / IDS_NAME)
        return {}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Write `copy_of.npy`: for each training document, the number of the one it nearly copies, or -1; int64."""
        grams = _Grams(shards)
        copy_of = np.full(len(grams.sizes), NO_COPY, np.int64)
        similarities: dict[int, float] = {}
        originals: dict[int, list[int]] = {}
        for document, buckets in _agreeing(shards):
            candidates = sorted({other for bucket in buckets for other in originals.get(bucket, ())})
            similarity, original = grams.most_similar(document, candidates, self.similarity)
            if original != NO_COPY:
                copy_of[document] = original
                if len(similarities) < MAX_EXAMPLES:
                    similarities[document] = similarity
                continue
            for bucket in buckets:
                originals.setdefault(bucket, []).append(document)
        np.save(folder / COPIES_NAME, copy_of)
        examples = [
            f"{grams.name(document)}: {similarity:.2f} like {grams.name(int(copy_of[document]))}"
            for document, similarity in similarities.items()
        ]
        return asdict(NearCopiesFacts(int((copy_of != NO_COPY).sum()), examples))


class _Grams:
    """The grams of all documents in the shards of the stage, memory-mapped."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = shards
        sizes = [np.load(shard / SIZES_NAME, allow_pickle=False) for shard in shards]
        self.sizes = np.concatenate([np.zeros(0, np.int64), *sizes])
        """Grams of each document."""
        self._first = np.cumsum([0, *map(len, sizes)])
        self._grams = [np.asarray(np.memmap(shard / GRAMS_NAME, np.uint64, "r")) for shard in shards]
        self._ends = [np.cumsum(size) for size in sizes]

    def _place(self, document: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first, document, side="right")) - 1
        return shard, document - int(self._first[shard])

    def of(self, document: int) -> np.ndarray:
        """Return a document's grams."""
        shard, row = self._place(document)
        end = self._ends[shard][row]
        return self._grams[shard][end - self.sizes[document] : end]

    def name(self, document: int) -> str:
        """Return a document's id."""
        shard, row = self._place(document)
        return str(pq.read_table(self._shards[shard] / IDS_NAME)["id"][row].as_py())

    def most_similar(self, document: int, candidates: Sequence[int], least: float) -> tuple[float, int]:
        """Return the similarity and number of the most similar candidate; 0 and -1 if none has the `least`."""
        best, found = 0.0, NO_COPY
        for other in candidates:
            smaller, larger = sorted((self.sizes[document], self.sizes[other]))
            if smaller / larger < least:  # the similarity is no larger
                continue
            similarity = jaccard(self.of(document), self.of(other))
            if similarity >= least and similarity > best:
                best, found = similarity, other
        return best, found


def _agreeing(shards: Sequence[Path]) -> Iterator[tuple[int, list[int]]]:
    """Yield each document that agrees with another in a band, in order, with its buckets: one for each such band."""
    keys = [np.load(shard / KEYS_NAME, mmap_mode="r", allow_pickle=False) for shard in shards]
    documents, buckets, used = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for band in range(keys[0].shape[1]):
        column = np.concatenate([shard[:, band] for shard in keys])
        order = np.argsort(column, kind="stable")
        same = column[order[1:]] == column[order[:-1]]
        shared = np.append(same, False) | np.append(False, same)
        number = np.cumsum(np.append(True, ~same))
        documents.append(order[shared])
        buckets.append(used + number[shared])
        used += len(column)
    by_document = np.argsort(found := np.concatenate(documents), kind="stable")
    found, shared_buckets = found[by_document], np.concatenate(buckets)[by_document]
    for start, stop in pairwise(np.flatnonzero(np.diff(found, prepend=-1, append=-1)).tolist()):
        yield int(found[start]), shared_buckets[start:stop].tolist()


def signature(grams: np.ndarray) -> np.ndarray:
    """Return the MinHash of a set of grams, uint64 [`PERMUTATIONS`]."""
    minhash = _empty_signature().copy()
    for first in range(0, len(grams), GRAMS_AT_ONCE):
        minhash.update_batch(grams[first : first + GRAMS_AT_ONCE].tolist())
    return np.asarray(minhash.hashvalues, np.uint64)


def bands(similarity: float) -> tuple[int, int]:
    """Return the number of bands of a signature, and the values in a band, to find documents from `similarity` on.

    B bands of r values find a document of similarity s with probability 1 - (1 - s^r)^B. Of all choices that
    reach `RECALL`, the longest bands find the fewest others: 25 of 5 at 0.8, 64 of 2 at 0.5.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** count >= RECALL:
            return count, rows
    return PERMUTATIONS, 1


@lru_cache(1)
def _empty_signature() -> MinHash:
    """Draw the random permutations once, as that takes longer than most documents."""
    return MinHash(num_perm=PERMUTATIONS, hashfunc=int, scheme="affine64")
