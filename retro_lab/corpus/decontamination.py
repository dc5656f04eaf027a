"""The `decontamination` stage: what is nearly a held-out document is not trained on (Borgeaud et al. 2022, Sec. 2.1).

Two documents are compared by the Jaccard similarity of their sets of 13-grams: the share of all 13-grams of both that
both have. MinHash with locality-sensitive hashing names the held-out documents that may be similar enough, of which
only 1 in 20,000 at a similarity of 0.8 is missed; the sets themselves decide.
"""

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datasketch import MinHash, MinHashLSH

from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.parquet import DocumentsWriter, document_files, documents_name, read_documents
from retro_lab.errors import ConfigurationError, CorpusError

WORDS_IN_GRAM = 13
WORD = re.compile(r"\w+")
BANDS, ROWS_IN_BAND = 25, 5
"""A document of similarity s is looked at with probability 1 - (1 - s^5)^25: 0.99995 at 0.8, 0.55 at 0.5."""
GRAMS_AT_ONCE = 4096
MAX_EXAMPLES = 5
FACTORS = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(WORDS_IN_GRAM)], np.uint64)
"""Powers of an odd number modulo 2^64: a 13-gram is known by the polynomial of its words' hashes."""


class DecontaminationStage(Stage):
    """Documents as the `documents` stage writes them, without those to train on that are like held-out ones.

    Memory: about 6 KB, and 8 bytes for each word, of every held-out document; documents to train on pass by.
    """

    name = "decontamination"
    unit = "documents"

    def __init__(self, documents: Artifact, similarity: float) -> None:
        """Drop documents of `documents` that are at least as similar as `similarity` to a held-out one.

        Raises:
            ConfigurationError: The similarity is not above 0 and at most 1.
        """
        if not 0 < similarity <= 1:
            raise ConfigurationError(
                f"decontamination.similarity={similarity} is not above 0 and at most 1; null drops no document."
            )
        self.documents = documents
        self.similarity = similarity
        self._held_out = HeldOutDocuments()

    def settings(self) -> Mapping[str, Any]:
        """The similarity."""
        return {"similarity": self.similarity}

    def inputs(self) -> Mapping[str, Artifact]:
        """The documents."""
        return {"documents": self.documents}

    def shard_sizes(self) -> Sequence[int]:
        """Documents to train on in each part."""
        return [sum(batch.num_rows for batch in read_documents(path, ["bytes"])) for path in self._files("train")]

    def _files(self, split: Any) -> list[Path]:
        return document_files(self.documents, split)

    def prepare(self) -> AbstractContextManager[Any]:
        """Read the held-out documents before the first shard."""
        for path in self._files("validation"):
            for batch in read_documents(path, ["id", "text"]):
                for row in batch.to_pylist():
                    self._held_out.add(row["id"], row["text"])
        return nullcontext()

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write `train.parquet` without the documents that are dropped, and `validation.parquet` as it is."""
        kept, dropped = Counter[str](), Counter[str]()
        examples: list[str] = []
        with DocumentsWriter(folder / documents_name("train")) as writer:
            for batch in read_documents(self._files("train")[shard]):
                for row in batch.to_pylist():
                    similarity, other = self._held_out.most_similar(row["text"])
                    if similarity < self.similarity:
                        writer.add(row)
                        kept += Counter(documents=1, bytes=row["bytes"])
                        continue
                    dropped += Counter(documents=1, bytes=row["bytes"])
                    if len(examples) < MAX_EXAMPLES:
                        examples.append(f"{row['id']}: {similarity:.2f} like {other}")
                advance(batch.num_rows)
        shutil.copyfile(self._files("validation")[shard], folder / documents_name("validation"))
        return {"train": dict(kept), "dropped": dict(dropped), "examples": examples}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Add up the counts.

        Raises:
            CorpusError: No document is left to train on.
        """
        kept, dropped = (sum((Counter(fact[name]) for fact in facts), Counter[str]()) for name in ("train", "dropped"))
        if not kept:
            raise CorpusError(
                f"All {dropped['documents']} documents to train on are at least {self.similarity} like held-out ones; "
                "check what is held out, or set decontamination=none."
            )
        examples = [example for fact in facts for example in fact["examples"]][:MAX_EXAMPLES]
        decontamination = {"similarity": self.similarity, "dropped": dict(dropped), "examples": examples}
        return {**self.documents.facts, "train": dict(kept), "decontamination": decontamination}


class HeldOutDocuments:
    """Held-out documents, to be found by what is like them."""

    def __init__(self) -> None:
        """Hold none yet."""
        self._ids: list[str] = []
        self._grams: list[np.ndarray] = []
        self._signatures = MinHashLSH(num_perm=BANDS * ROWS_IN_BAND, params=(BANDS, ROWS_IN_BAND))

    def add(self, identifier: str, text: str) -> None:
        """Hold a document."""
        grams = grams_of(text)
        self._signatures.insert(len(self._ids), signature(grams))
        self._ids.append(identifier)
        self._grams.append(grams)

    def most_similar(self, text: str) -> tuple[float, str]:
        """Return the largest similarity of `text` to a held-out document, and its id; 0 if none comes near."""
        grams = grams_of(text)
        candidates = sorted(self._signatures.query(signature(grams)))
        similarities = ((jaccard(grams, self._grams[number]), self._ids[number]) for number in candidates)
        return max(similarities, key=lambda pair: pair[0], default=(0.0, ""))


def grams_of(text: str) -> np.ndarray:
    """Return the set of 13-grams of the words of `text` as sorted hashes, uint64; a shorter text is one gram.

    Words are runs of letters, digits and underscores in lower case. A text without any is its characters but space.
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
    """Share of the elements of two sorted sets that both have."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def signature(grams: np.ndarray) -> MinHash:
    """MinHash of a set of grams."""
    minhash = MinHash(num_perm=BANDS * ROWS_IN_BAND, permutations=_permutations(), hashfunc=int, scheme="affine64")
    for first in range(0, len(grams), GRAMS_AT_ONCE):
        minhash.update_batch(grams[first : first + GRAMS_AT_ONCE])
    return minhash


@lru_cache(1)
def _permutations() -> Any:
    """Make the random permutations once, which takes longer than most documents."""
    return MinHash(num_perm=BANDS * ROWS_IN_BAND, scheme="affine64").permutations
