"""Which index `index.factory=auto` builds: from the number of vectors, their width, the wanted recall and a budget."""

import math
import re
from dataclasses import dataclass

import faiss

from retro_lab.errors import ConfigurationError

AUTO = "auto"
EXACT = "Flat"
SMALLEST_TRAINED = 1024
"""With fewer vectors than this every index is exact: there is nothing to learn cells and codes from."""
POINTS_PER_LIST = 40
"""Vectors for each inverted list, both in the database and in the training sample; FAISS warns below 39."""
HNSW_LISTS = 65_536
"""From this many lists on a graph finds the nearest centroids; below, comparing with all of them is as quick."""
FLOAT32, INT64, INT32 = 4, 8, 4
"""Bytes."""


@dataclass(frozen=True)
class _Codes:
    """One way to hold vectors in inverted lists."""

    codes: str
    """What FAISS scans, with M for the number of 4-bit sub-quantizers."""
    share: int
    """A sub-quantizer for each so many dimensions."""
    reaches: float
    """Recall@10 that was reached with all candidates ranked again, a little below what was measured."""

    def factory(self, width: int) -> str:
        return self.codes.replace("M", str(_divisor(width, self.share)))


LADDER = (
    _Codes("PQMx4fs,Refine(SQ8)", 2, 0.98),
    _Codes("PQMx4fs,Refine(SQfp16)", 2, 1),
    _Codes("PQMx4fs,Refine(SQ8)", 4, 0),
    _Codes("PQMx4fs,Refine(SQ4)", 4, 0),
    _Codes("PQMx4fs", 2, 0),
    _Codes("PQMx4fs", 4, 0),
    _Codes("PQMx4fs", 8, 0),
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
    if vectors <= exact_below and index_bytes(EXACT, vectors, width) <= budget:
        return Choice(EXACT)
    if vectors < SMALLEST_TRAINED:
        return Choice(EXACT, f"{vectors} vectors are too few to train an index on; searching exactly")
    lists = 2 ** min(round(math.log2(4 * math.sqrt(vectors))), math.floor(math.log2(vectors / POINTS_PER_LIST)))
    coarse = "_HNSW32" if lists >= HNSW_LISTS else ""
    names = {codes: f"IVF{lists}{coarse},{codes.factory(width)}" for codes in LADDER}
    fitting = [codes for codes, name in names.items() if index_bytes(name, vectors, width) <= budget]
    chosen = next((codes for codes in fitting if codes.reaches >= recall), fitting[0] if fitting else LADDER[-1])
    if not fitting:
        remark = f"no index of {vectors:,} vectors fits into index.max_bytes={max_bytes:g}; the smallest is used"
    elif chosen.reaches < recall:
        remark = f"index.max_bytes={max_bytes:g} leaves no room for more recall"
    else:
        remark = ""
    return Choice(names[chosen], remark)


def _divisor(width: int, share: int) -> int:
    """Return the largest number of sub-quantizers, at most one for each `share` dimensions, that divides `width`."""
    return next(count for count in range(max(1, width // share), 0, -1) if width % count == 0)


def index_bytes(factory: str, vectors: int, width: int) -> float:
    """Estimate the bytes of an index: codes, ids, copies and links of all vectors, and centroids.

    Raises:
        ConfigurationError: FAISS does not know the factory string, or cannot tell how large its codes are.
    """
    try:
        whole = faiss.index_factory(width, factory)
        each, fixed = _vector_bytes(whole)
    except RuntimeError as error:
        raise unknown_factory(factory, width) from error
    return vectors * each + fixed


def unknown_factory(factory: str, width: int) -> ConfigurationError:
    """Return the error for a string of which FAISS makes no index for vectors of this width, with the reason."""
    pieces = [int(count) for count in re.findall(r"PQ(\d+)", factory)]
    if odd := next((count for count in pieces if count and width % count), None):
        largest = next(count for count in range(min(odd, width), 0, -1) if width % count == 0)
        return ConfigurationError(
            f"index.factory={factory} cuts vectors into {odd} pieces, which embeddings of width {width} cannot be; "
            f"set index.factory to one with a divisor of {width}, such as PQ{largest} for PQ{odd}, or to auto."
        )
    return ConfigurationError(
        f"index.factory={factory} is not a FAISS factory string for vectors of width {width}; use auto, Flat, or one "
        "such as IVF256,Flat."
    )


def _vector_bytes(index: faiss.Index) -> tuple[float, float]:
    """Return the bytes of each vector of an index, and those that it takes whatever their number."""
    if isinstance(index, faiss.IndexRefine):
        each, fixed = _vector_bytes(faiss.downcast_index(index.base_index))
        return each + index.refine_index.sa_code_size(), fixed
    if isinstance(index, faiss.IndexPreTransform):
        return _vector_bytes(faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexIVF):
        return index.code_size + INT64, index.nlist * index.d * FLOAT32
    if isinstance(index, faiss.IndexHNSW):
        links = index.hnsw.nb_neighbors(0)  # type: ignore[attr-defined]
        return index.storage.sa_code_size() + INT32 * (links + 1) + INT64, 0  # its level, and where its links are
    return index.sa_code_size(), 0
