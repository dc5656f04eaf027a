"""Seeded order and chance that are computed entry by entry: shuffling any number of sequences takes no memory.

A generalized Feistel network permutes the pairs (i, j) of a rectangle just large enough for the range (Black and
Rogaway 2002): in each round, one number of the pair is shifted, modulo its side, by a hash of the other. The few
results beyond the range are permuted again until they fall into it, which gives a permutation of the range itself.
"""

import math

import numpy as np

ROUNDS = 6


def permute(places: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the entries at `places` of the permutation of 0, 1, ..., `count` - 1 that `seed` and `epoch` determine.

    Args:
        places: int64 of any shape, each at least 0 and below `count`.
        count: Length of the permutation, up to 2^62.
        seed: Not negative.
        epoch: Not negative.
    """
    keys = np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64)
    height = math.isqrt(count - 1) + 1
    sides = np.array([height, -(-count // height)], np.uint64)
    numbers = _rectangle(places.astype(np.uint64), sides, keys)
    while (outside := numbers >= count).any():
        numbers[outside] = _rectangle(numbers[outside], sides, keys)
    return numbers.astype(np.int64)


def chances(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Return a random number for each of `numbers`, which that number and `seed` determine.

    Args:
        numbers: Not negative, int64 of any shape.
        seed: Not negative.

    Returns:
        float64 of the same shape, at least 0 and below 1, evenly distributed.
    """
    keys = np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(2, np.uint64)
    mixed = mix(mix(numbers.astype(np.uint64) ^ keys[0]) ^ keys[1])
    return (mixed >> np.uint64(11)) / 2.0**53


def _rectangle(numbers: np.ndarray, sides: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Permute 0, 1, ..., height x width - 1, each a pair of row and column."""
    pair = list(np.divmod(numbers, sides[1]))
    for number, key in enumerate(keys):
        moved = number % 2
        pair[moved] = (pair[moved] + mix(pair[1 - moved] ^ key) % sides[moved]) % sides[moved]
    return np.asarray(pair[0] * sides[1] + pair[1])


def mix(numbers: np.ndarray) -> np.ndarray:
    """Mix all bits of 64-bit numbers: the finalizer of SplitMix64 (Steele et al. 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
