"""Longest common substrings of chunks and their neighbors (Borgeaud et al. 2022, Sec. 2.6), by operations on words.

A set of places of a chunk is a word, or several if the chunk has more than 64 tokens. For each token j of a neighbor,
take the places at which a common run of at least a tokens starts: bit i is set if chunk[i : i + a] equals
neighbor[j : j + a]. Runs of a + b tokens start where one of a tokens does and, a places later in both, one of b tokens:

    runs[a + b][j]  =  runs[a][j]  &  runs[b][j + a] >> a

so lengths are doubled until no run is left, and the last doubling is refined by halves, as in a binary search.
"""

import numpy as np

BITS = 64
"""Bits of a word."""
WORDS_AT_ONCE = 2**17
"""Largest number of words in a batch: a megabyte, of which about ten arrays are made."""
CHUNKS_AT_ONCE = 128
"""Most chunks in a batch; its table of their tokens grows with the square of this (at most 8 MB for 64 tokens)."""


def longest_common_substrings(
    chunks: np.ndarray, lengths: np.ndarray, neighbors: np.ndarray, neighbor_lengths: np.ndarray, marker: int
) -> np.ndarray:
    """Return the tokens of the longest contiguous run that each chunk has in common with any of its neighbors.

    It is exact. Memory does not grow with C.

    Args:
        chunks: Token ids, int [C, m].
        lengths: Tokens of each chunk, int [C]; those after them are padding, which equals nothing.
        neighbors: Token ids, int [C, k, r].
        neighbor_lengths: Tokens of each neighbor, int [C, k]; 0 if there is none.
        marker: Id of the document marker, which equals nothing, not even itself.

    Returns:
        int64 [C], from 0 to m.
    """
    count, m = chunks.shape
    k, r = neighbors.shape[1:]
    longest = np.zeros(count, np.int64)
    if not (chunks.size and neighbors.size):
        return longest
    batch = min(CHUNKS_AT_ONCE, max(1, WORDS_AT_ONCE // (k * r * _words(m))))
    for first in range(0, count, batch):
        part = slice(first, first + batch)
        is_text = (np.arange(m) < lengths[part, None]) & (chunks[part] != marker)
        is_token = np.arange(r) < neighbor_lengths[part, :, None]
        runs = _equal_tokens(chunks[part], is_text, neighbors[part], is_token)
        longest[part] = _longest_runs(runs, 1).reshape(-1, k).max(1)
    return longest


def _words(m: int) -> int:
    """Return how many words a set of m places takes."""
    return -(-m // BITS)


def _equal_tokens(chunks: np.ndarray, is_text: np.ndarray, neighbors: np.ndarray, is_token: np.ndarray) -> np.ndarray:
    """Return at which places of its chunk, [C, m], each token of a neighbor, [C, k, r], stands; [words, r, C k].

    The last axis is the longest, and what is done to all neighbors alike is done along it.
    """
    count, m = chunks.shape
    r = neighbors.shape[-1]
    # Tokens of these chunks are numbered from 1 on, so that the table is small; 0 is every other token.
    distinct, positions = np.unique(chunks[is_text], return_inverse=True)
    numbers = np.zeros(max(int(chunks.max()), int(neighbors.max())) + 1, np.int32)
    numbers[distinct] = np.arange(1, len(distinct) + 1)
    numbered = np.zeros((count, m), np.int32)
    numbered[is_text] = positions + 1
    rows = np.arange(count)
    places = np.zeros((_words(m), count, len(distinct) + 1), np.uint64)
    for place in range(m):
        places[place // BITS, rows, numbered[:, place]] |= np.uint64(1 << place % BITS)
    places[:, :, 0] = 0
    entries = np.where(is_token, numbers[neighbors], 0) + (rows * places.shape[-1])[:, None, None]
    return places.reshape(_words(m), -1).take(entries.reshape(-1, r).T, axis=1)


def _longest_runs(runs: np.ndarray, length: int) -> np.ndarray:
    """Return the longest run of each of n neighbors in multiples of `length`, int64 [n].

    Args:
        runs: Starts of runs of at least `length` tokens, [words, r, n]; replaced by those of the longest.
        length: A power of two.
    """
    longest = np.where(_any(runs), length, 0)
    longer = runs & _earlier(runs, length)
    grown = np.flatnonzero(_any(longer))
    if len(grown):
        starts = longer[:, :, grown]
        longest[grown] = _longest_runs(starts, 2 * length)
        extended = runs[:, :, grown] & _earlier(starts, length)
        fits = _any(extended)
        longest[grown] += length * fits
        runs[:, :, grown] = np.where(fits, extended, starts)
    return longest


def _any(runs: np.ndarray) -> np.ndarray:
    """Return which neighbors have a run, bool [n]."""
    return np.bitwise_or.reduce(runs, axis=(0, 1)) != 0


def _earlier(runs: np.ndarray, tokens: int) -> np.ndarray:
    """Return where runs would start if they began `tokens` earlier, both in the chunk and in the neighbor."""
    moved = np.zeros_like(runs)
    whole, bits = divmod(tokens, BITS)
    words, r, _ = runs.shape
    if whole < words and tokens < r:
        moved[: words - whole, : r - tokens] = runs[whole:, tokens:] >> np.uint64(bits)
        if bits:
            moved[: words - whole - 1, : r - tokens] |= runs[whole + 1 :, tokens:] << np.uint64(BITS - bits)
    return moved
