"""13-grams of tokens, by whose sets chunks are compared, many pairs at once."""

import numpy as np

from retro_lab.corpus.grams import FACTORS
from retro_lab.permutation import mix

GRAM = len(FACTORS)
NO_GRAM = np.uint64(2**64 - 1)
"""Fills up sets that have fewer grams than others beside them."""


def token_grams(tokens: np.ndarray, lengths: np.ndarray, marker: int) -> np.ndarray:
    """Return the set of 13-grams of tokens of each text as hashes; a shorter text is one gram, an empty one has none.

    Args:
        tokens: Token ids, int [n, r].
        lengths: Tokens of each text, int [n]; those after them are padding.
        marker: Id of the document marker, which is not text; only the first token may be one.

    Returns:
        uint64 [n, grams], filled up with `NO_GRAM`.
    """
    width = max(tokens.shape[1], GRAM + 1)
    first = (tokens[:, :1] == marker).astype(np.int64)
    places = np.arange(width)
    is_text = (places >= first) & (places < lengths[:, None])
    hashes = np.zeros((len(tokens), width), np.uint64)
    hashes[:, : tokens.shape[1]] = mix(tokens.astype(np.uint64) + np.uint64(1))
    hashes[~is_text] = 0
    count = width - GRAM + 1
    grams = np.zeros((len(tokens), count), np.uint64)
    for place, factor in enumerate(FACTORS):
        grams += hashes[:, place : place + count] * factor
    start = places[:count]
    is_whole = (start >= first) & (start + GRAM <= lengths[:, None])
    grams[~(is_whole | ((start == first) & (lengths[:, None] > first)))] = NO_GRAM
    grams.sort(axis=1)
    repeated = grams[:, 1:] == grams[:, :-1]
    grams[:, 1:][repeated] = NO_GRAM
    return grams


def similarities(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the Jaccard similarity of each set of `ones` to that of `others` beside it; 0 of two empty sets.

    Args:
        ones: As `token_grams` returns them, [n, grams].
        others: The same for as many texts.

    Returns:
        float64 [n].
    """
    both = np.sort(np.concatenate([ones, others], axis=1), axis=1)
    common = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] != NO_GRAM)).sum(1)
    union = (both != NO_GRAM).sum(1) - common
    return np.asarray(common / np.maximum(1, union))
