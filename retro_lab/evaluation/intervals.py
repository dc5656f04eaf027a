"""How far a score would move with other documents like those of the text: bootstrap intervals.

Documents are drawn again with replacement, as many as there are, and scored together; this many times over, the middle
95% of the scores are the interval (the percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13). A gain is paired: both models are scored on the same draws, so what makes a document hard for both
cancels out.

The tokens of a document are not independent, and documents are taken to be. Other seeds of a training are in it only
where there are several, which are then drawn again too. A document without bytes, such as one that has none of the
chunks in question, contributes nothing and is not drawn.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retro_lab.runs.chunk_scores import DocumentScores

DRAWS = 2000
SEED = 0
LEVEL = 0.95
FEWEST_DOCUMENTS = 2
"""One document drawn again and again is always the same."""
BLOCK = 2**20
"""Documents that are drawn at a time, all draws together: memory does not grow with their number."""


class Interval(NamedTuple):
    """Bounds in the unit of the score: bits per byte, or a share."""

    low: float
    high: float


def gain_interval(scores: DocumentScores, baseline: DocumentScores) -> Interval | None:
    """Return the 95% interval of the bits per byte that are saved against a baseline.

    Args:
        scores: Of the model.
        baseline: Of the model that it is compared with, on the same documents.

    Returns:
        Above zero where the model is better; None for fewer than two documents.

    Raises:
        ValueError: The documents are not the same.
    """
    return weighted_interval([[(1.0, baseline), (-1.0, scores)]])


def weighted_interval(seeds: Sequence[Sequence[tuple[float, DocumentScores]]]) -> Interval | None:
    """Return the 95% interval of a weighted sum of models' bits per byte, such as one gain less another.

    Args:
        seeds: For each seed of the trainings, weights and scores on the same documents. The sum is the mean over seeds,
            and seeds are drawn again with replacement as documents are.

    Returns:
        The interval; None for fewer than two documents.

    Raises:
        ValueError: The documents are not the same.
    """
    first = seeds[0][0][1]
    for _, scores in (pair for pairs in seeds for pair in pairs):
        if not (np.array_equal(scores.bytes, first.bytes) and np.array_equal(scores.tokens, first.tokens)):
            raise ValueError("The scores of the models are not those of the same documents.")
    kept = first.bytes > 0
    nats = np.stack([np.sum([weight * scores.nats[kept] for weight, scores in pairs], axis=0) for pairs in seeds])
    return _interval(nats, first.bytes[kept])


def share_interval(counted: np.ndarray) -> Interval | None:
    """Return the 95% interval of the share of items that count, bool [D]; None for fewer than two."""
    return _interval(counted[None].astype(float), np.ones(len(counted)), unit=1)


def _interval(nats: np.ndarray, sizes: np.ndarray, unit: float = math.log(2)) -> Interval | None:
    """Return the interval of sum of nats / sum of bytes / unit over documents, in the mean over seeds.

    Args:
        nats: float64 [S, D], for each seed.
        sizes: int64 [D].
        unit: Of the interval, in nats.
    """
    seeds, documents = nats.shape
    if documents < FEWEST_DOCUMENTS:
        return None
    random = np.random.default_rng(SEED)
    drawn_seeds = np.random.default_rng([SEED, seeds]).integers(seeds, size=(DRAWS, seeds))
    ratios = []
    rows = max(1, BLOCK // documents)
    for start in range(0, DRAWS, rows):
        drawn = random.integers(documents, size=(min(rows, DRAWS - start), documents))
        by_seed = np.stack([values[drawn].sum(1) for values in nats], axis=1)
        by_seed = np.take_along_axis(by_seed, drawn_seeds[start : start + rows], axis=1)
        ratios.append(by_seed.mean(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(ratios) / unit, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
