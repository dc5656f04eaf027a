"""Which index `index.factory=auto` builds: from the number of vectors, their width, the wanted recall and a budget."""

import math
from dataclasses import dataclass

AUTO = "auto"
EXACT = "Flat"
SMALLEST_TRAINED = 1024
"""With fewer vectors than this every index is exact: there is nothing to learn cells and codes from."""
POINTS_PER_LIST = 40
"""Vectors for each inverted list, both in the database and in the training sample; FAISS warns below 39."""
HNSW_LISTS = 65_536
"""From this many lists on a graph finds the nearest centroids; below, comparing with all of them is as quick."""
FLOAT_BYTES = 4
ID_BYTES = 8


@dataclass(frozen=True)
class _Codes:
    """One way to hold vectors in inverted lists."""

    codes: str
    """What FAISS scans, with M for the number of 4-bit sub-quantizers."""
    share: int
    """A sub-quantizer for each so many dimensions."""
    refined: float
    """Bytes of a dimension in the copy that ranks candidates again."""
    reaches: float
    """Recall@10 that was reached with all candidates ranked again, a little below what was measured."""

    def factory(self, width: int) -> str:
        return self.codes.replace("M", str(_divisor(width, self.share)))

    def bytes(self, width: int) -> float:
        return _divisor(width, self.share) / 2 + ID_BYTES + self.refined * width


LADDER = (
    _Codes("PQMx4fs,Refine(SQ8)", 4, 1, 0.98),
    _Codes("PQMx4fs,Refine(SQfp16)", 2, 2, 1),
    _Codes("PQMx4fs,Refine(SQ4)", 4, 0.5, 0),
    _Codes("PQMx4fs", 2, 0, 0),
    _Codes("PQMx4fs", 4, 0, 0),
    _Codes("PQMx4fs", 8, 0, 0),
)
"""In order of preference (`benchmarks/index.py`): the first two by the wanted recall, the others by bytes alone."""


@dataclass(frozen=True)
class Choice:
    """A FAISS factory string, and why it is not what it would be otherwise, if there is something to say."""

    factory: str
    remark: str = ""


def choose_factory(
    factory: str, vectors: int, width: int, exact_below: int, recall: float = 0.95, max_bytes: float | None = None
) -> Choice:
    """Choose an index over `vectors` vectors of `width` dimensions; a factory string that was given is left alone.

    `auto` is exact while that is quick, and beyond that inverted lists (about 4 sqrt(N), a power of two) of 4-bit
    codes that are scanned in registers, with a finer copy of the vectors to rank the candidates again: in 8 bits, or
    in 16 (which is all that the embeddings have) for a recall that 8 bits do not reach. Where that, or the exact
    index, takes more than `max_bytes`, the copy gets coarser and then goes. It always names an index that can be
    built.
    """
    if factory != AUTO:
        return Choice(factory)
    budget = math.inf if max_bytes is None else max_bytes
    if vectors <= exact_below and vectors * width * FLOAT_BYTES <= budget:
        return Choice(EXACT)
    if vectors < SMALLEST_TRAINED:
        return Choice(EXACT, f"{vectors} vectors are too few to train an index on; searching exactly")
    lists = 2 ** min(round(math.log2(4 * math.sqrt(vectors))), math.floor(math.log2(vectors / POINTS_PER_LIST)))
    coarse = "_HNSW32" if lists >= HNSW_LISTS else ""
    fitting = [codes for codes in LADDER if estimated_bytes(codes, vectors, width, lists) <= budget]
    chosen = next((codes for codes in fitting if codes.reaches >= recall), fitting[0] if fitting else LADDER[-1])
    name = f"IVF{lists}{coarse},{chosen.factory(width)}"
    if not fitting:
        remark = f"no index of {vectors:,} vectors fits into index.max_bytes={max_bytes:g}; the smallest is used"
    elif chosen.reaches < recall:
        remark = f"index.max_bytes={max_bytes:g} leaves no room for more recall"
    else:
        remark = ""
    return Choice(name, remark)


def estimated_bytes(codes: _Codes, vectors: int, width: int, lists: int) -> float:
    """Bytes of an index in memory: codes, ids and copies of all vectors, and the centroids."""
    return vectors * codes.bytes(width) + lists * width * FLOAT_BYTES


def _divisor(width: int, share: int) -> int:
    """Return the largest number of sub-quantizers, at most one for each `share` dimensions, that divides `width`."""
    return next(count for count in range(max(1, width // share), 0, -1) if width % count == 0)
