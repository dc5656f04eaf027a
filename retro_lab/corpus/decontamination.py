"""Decontamination: training documents that nearly duplicate held-out ones are dropped (Borgeaud et al. 2022, Sec. 2.1).

Two documents are compared by the Jaccard similarity of their sets of 13-grams, the size of the intersection over that
of the union. MinHash with locality-sensitive hashing finds the held-out documents that may be similar enough and misses
at most 1 in 10,000; the sets themselves decide.

documents ─► held_out (13-grams and signatures of both held-out splits) ─► decontamination (documents, fewer of them)
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH

from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.documents import HELD_OUT, SPLITS, Split
from retro_lab.corpus.parquet import DocumentsWriter, Piece, documents_name, pieces
from retro_lab.errors import ConfigurationError, CorpusError

WORDS_IN_GRAM = 13
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Chinese characters and Japanese kana: written without spaces, each counts as a word."""
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
PERMUTATIONS = 128
RECALL = 0.9999
"""Least probability of comparing the sets of two documents that are just similar enough."""
GRAMS_AT_ONCE = 4096
MAX_EXAMPLES = 5
GRAMS_NAME, ENDS_NAME, SIGNATURES_NAME, IDS_NAME = "grams.bin", "ends.npy", "signatures.npy", "ids.parquet"
"""Files of a shard of held-out documents: concatenated grams, the end of each document's, signatures, ids."""
FACTORS = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(WORDS_IN_GRAM)], np.uint64)
"""Powers of an odd number modulo 2^64: a 13-gram is hashed by a polynomial of its words' hashes."""


@dataclass(frozen=True)
class Dropped:
    """What decontamination dropped."""

    similarity: float
    dropped: dict[str, int]
    """Counts of `documents` and `bytes`; empty if there are none."""
    examples: list[str]


@dataclass(frozen=True)
class DecontaminationFacts:
    """Facts of a `decontamination` artifact, besides those of the documents it was made from."""

    decontamination: Dropped


class HeldOutStage(Stage):
    """13-grams and signature of every held-out document, computed once for all processes that compare with them."""

    name = "held_out"
    version = 2
    unit = "documents"

    def __init__(self, documents: Artifact) -> None:
        """Read the validation and the test split of `documents`."""
        self.documents = documents

    def settings(self) -> Mapping[str, Any]:
        """Return the words in a gram and the permutations."""
        return {"words_in_gram": WORDS_IN_GRAM, "permutations": PERMUTATIONS}

    def inputs(self) -> Mapping[str, Artifact]:
        """The documents."""
        return {"documents": self.documents}

    def libraries(self) -> Mapping[str, int]:
        """Return the library that makes signatures."""
        return {"datasketch": 1}

    @cached_property
    def _pieces(self) -> list[Piece]:
        return [piece for split in HELD_OUT for piece in pieces(self.documents, split)]

    def shard_sizes(self) -> Sequence[int]:
        """Return the held-out documents in each piece."""
        return [piece.documents for piece in self._pieces]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write the documents' grams, concatenated, the end of each document's, and their signatures and ids."""
        ids: list[str] = []
        ends: list[int] = []
        signatures: list[np.ndarray] = []
        with (folder / GRAMS_NAME).open("wb") as file:
            for batch in self._pieces[shard].read(["id", "text"]):
                for row in batch.to_pylist():
                    grams = grams_of(row["text"])
                    grams.tofile(file)
                    ids.append(row["id"])
                    ends.append(len(grams) + (ends[-1] if ends else 0))
                    signatures.append(signature(grams).hashvalues)
                advance(batch.num_rows)
        np.save(folder / ENDS_NAME, np.array(ends, np.int64))
        np.save(folder / SIGNATURES_NAME, np.array(signatures, np.uint64))
        pq.write_table(pa.table({"id": pa.array(ids, pa.large_string())}), folder / IDS_NAME)
        return {"documents": len(ids)}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Count the documents."""
        return {"documents": sum(fact["documents"] for fact in facts)}


class DecontaminationStage(Stage):
    """Documents as the `documents` stage writes them, without training documents that are similar to held-out ones.

    A shard is one piece of a split, up to 64 MiB of text. Memory: about 9 KB for every held-out document, in the tables
    of their signatures; their grams are memory-mapped, and training documents are read a few at a time.
    """

    name = "decontamination"
    version = 5
    unit = "documents"

    def __init__(self, documents: Artifact, held_out: Artifact, similarity: float) -> None:
        """Drop training documents whose similarity to a document in `held_out` is at least `similarity`.

        Raises:
            ConfigurationError: The similarity is not above 0 and at most 1.
        """
        if not 0 < similarity <= 1:
            raise ConfigurationError(
                f"decontamination.similarity={similarity} is not above 0 and at most 1; null drops no document."
            )
        self.documents = documents
        self.held_out = held_out
        self.similarity = similarity
        self._held_out: HeldOutDocuments | None = None

    def settings(self) -> Mapping[str, Any]:
        """Return the similarity."""
        return {"similarity": self.similarity}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the documents, and the grams and signatures of held-out ones."""
        return {"documents": self.documents, "held_out": self.held_out}

    def libraries(self) -> Mapping[str, int]:
        """Return the library that makes and compares signatures."""
        return {"datasketch": 1}

    @cached_property
    def _pieces(self) -> list[tuple[Split, Piece]]:
        return [(split, piece) for split in SPLITS for piece in pieces(self.documents, split)]

    def shard_sizes(self) -> Sequence[int]:
        """Return the documents in each piece, of all splits."""
        return [piece.documents for _, piece in self._pieces]

    @contextmanager
    def prepare(self) -> Iterator[None]:
        """Hold the signatures of the held-out documents in memory."""
        self._held_out = HeldOutDocuments(self.similarity)
        for folder in map(self.held_out.shard, range(self.held_out.shards)):
            ids = pq.read_table(folder / IDS_NAME)["id"].to_pylist()
            grams = np.asarray(np.memmap(folder / GRAMS_NAME, np.uint64, "r"))
            ends = np.load(folder / ENDS_NAME, allow_pickle=False)
            signatures = np.load(folder / SIGNATURES_NAME, allow_pickle=False)
            for identifier, found, values in zip(ids, np.split(grams, ends[:-1]), signatures, strict=True):
                self._held_out.add(identifier, found, values)
        try:
            yield
        finally:
            self._held_out = None

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write `train.parquet` without dropped documents, or copy the file of a held-out split."""
        assert self._held_out is not None
        split, piece = self._pieces[shard]
        kept, dropped = Counter[str](), Counter[str]()
        examples: list[str] = []
        with DocumentsWriter(folder / documents_name(split)) as writer:
            for batch in piece.read():
                for row in batch.to_pylist():
                    similarity, other = self._held_out.most_similar(row["text"]) if split == "train" else (0.0, "")
                    if similarity < self.similarity:
                        writer.add(row)
                        kept += Counter(documents=1, bytes=row["bytes"])
                        continue
                    dropped += Counter(documents=1, bytes=row["bytes"])
                    if len(examples) < MAX_EXAMPLES:
                        examples.append(f"{row['id']}: {similarity:.2f} like {other}")
                advance(batch.num_rows)
        return {"split": split, "kept": dict(kept), "dropped": dict(dropped), "examples": examples}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Add up the counts.

        Raises:
            CorpusError: No document to train on is left.
        """
        train = [fact for fact in facts if fact["split"] == "train"]
        kept, dropped = (sum((Counter(fact[name]) for fact in train), Counter[str]()) for name in ("kept", "dropped"))
        if not kept:
            raise CorpusError(
                f"All {dropped['documents']} documents to train on are at least {self.similarity} like held-out ones; "
                "check what is held out, or set decontamination=none."
            )
        examples = [example for fact in train for example in fact["examples"]][:MAX_EXAMPLES]
        decontamination = Dropped(self.similarity, dict(dropped), examples)
        return {**self.documents.facts, "train": dict(kept), **asdict(DecontaminationFacts(decontamination))}


class HeldOutDocuments:
    """Held-out documents, indexed to find those with at least a given similarity to a text."""

    def __init__(self, similarity: float) -> None:
        """Start without documents."""
        self._ids: list[str] = []
        self._grams: list[np.ndarray] = []
        self._signatures = MinHashLSH(num_perm=PERMUTATIONS, params=bands(similarity))

    def add(self, identifier: str, grams: np.ndarray, values: np.ndarray) -> None:
        """Add a document by its grams and the values of its signature."""
        minhash = _empty_signature().copy()
        minhash.hashvalues = values
        self._signatures.insert(len(self._ids), minhash, check_duplication=False)
        self._ids.append(identifier)
        self._grams.append(grams)

    def most_similar(self, text: str) -> tuple[float, str]:
        """Return the largest similarity of `text` to a held-out document, and its id; 0 if none is similar."""
        grams = grams_of(text)
        candidates = sorted(self._signatures.query(signature(grams)))
        similarities = ((jaccard(grams, self._grams[number]), self._ids[number]) for number in candidates)
        return max(similarities, key=lambda pair: pair[0], default=(0.0, ""))


def grams_of(text: str) -> np.ndarray:
    """Return the set of 13-grams of the words of `text` as sorted hashes, uint64; a shorter text is one gram.

    Words are runs of letters, digits and underscores in lower case, or single Chinese characters or kana. A text
    without words counts as one word, its characters without spaces.
    """
    hashes = np.fromiter((_hash(match[0]) for match in WORD.finditer(text.lower())), np.uint64)
    if not len(hashes):
        hashes = np.array([_hash("".join(text.split()))], np.uint64)
    if len(hashes) < WORDS_IN_GRAM:
        hashes = np.pad(hashes, (0, WORDS_IN_GRAM - len(hashes)))
    count = len(hashes) - WORDS_IN_GRAM + 1
    grams = np.zeros(count, np.uint64)
    for place, factor in enumerate(FACTORS):
        grams += hashes[place : place + count] * factor
    return np.unique(grams)


@lru_cache(2**18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "little")


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Jaccard similarity of two sorted sets."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def signature(grams: np.ndarray) -> MinHash:
    """Return the MinHash of a set of grams."""
    minhash = _empty_signature().copy()
    for first in range(0, len(grams), GRAMS_AT_ONCE):
        minhash.update_batch(grams[first : first + GRAMS_AT_ONCE].tolist())
    return minhash


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
