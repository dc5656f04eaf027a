"""How far a score would move with other documents like those of the text: bootstrap intervals.

Documents are drawn again with replacement, as many as there are, and scored together; this many times over, the middle
95% of the scores are the interval (the percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13). A gain is paired: both models are scored on the same draws, so what makes a document hard for both
cancels out.

The tokens of a document are not independent, and documents are taken to be. Other seeds of a training are not in it. A
document without bytes, such as one that has none of the chunks in question, contributes nothing and is not drawn.
"""

import math
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


def bits_per_byte_interval(scores: DocumentScores) -> Interval | None:
    """Return the 95% interval of bits per byte; None for fewer than two documents."""
    return _interval(scores.nats, scores.bytes)


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
    if not (np.array_equal(scores.bytes, baseline.bytes) and np.array_equal(scores.tokens, baseline.tokens)):
        raise ValueError("The scores of the two models are not those of the same documents.")
    return _interval(baseline.nats - scores.nats, scores.bytes)


def share_interval(counted: np.ndarray) -> Interval | None:
    """Return the 95% interval of the share of items that count, bool [items]; None for fewer than two."""
    return _interval(counted.astype(float), np.ones(len(counted)), unit=1)


def _interval(nats: np.ndarray, sizes: np.ndarray, unit: float = math.log(2)) -> Interval | None:
    """Return the interval of sum of nats / sum of bytes / unit over documents."""
    nats, sizes = nats[sizes > 0], sizes[sizes > 0]
    documents = len(nats)
    if documents < FEWEST_DOCUMENTS:
        return None
    random = np.random.default_rng(SEED)
    ratios = []
    rows = max(1, BLOCK // documents)
    for start in range(0, DRAWS, rows):
        drawn = random.integers(documents, size=(min(rows, DRAWS - start), documents))
        ratios.append(nats[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(ratios) / unit, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
