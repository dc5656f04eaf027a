"""13-grams of words, by whose sets documents are compared (Borgeaud et al. 2022, Sec. 2.1)."""

import hashlib
import re
from functools import lru_cache

import numpy as np

WORDS_IN_GRAM = 13
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Chinese characters and Japanese kana: written without spaces, each counts as a word."""
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
FACTORS = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(WORDS_IN_GRAM)], np.uint64)
"""Powers of an odd number modulo 2^64: a 13-gram is hashed by a polynomial of its words' hashes."""


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
