"""Choice of the index for `index.factory=auto`, by number of vectors, width, wanted recall and memory."""

import math
import re
from dataclasses import dataclass

import faiss

from retro_lab.errors import ConfigurationError

AUTO = "auto"
EXACT = "Flat"
SMALLEST_TRAINED = 1024
"""With fewer vectors every index is exact: they are too few to learn lists and codes from."""
POINTS_PER_LIST = 40
"""Vectors for each inverted list, both in the database and in the training sample; FAISS warns below 39."""
HNSW_LISTS = 65_536
"""With at least this many lists, a graph finds the nearest centroids; with fewer, comparing with all is as fast."""
FLOAT32, INT64, INT32 = 4, 8, 4
"""Bytes."""


@dataclass(frozen=True)
class _Codes:
    """One way to hold vectors in inverted lists."""

    codes: str
    """Part of the factory string; M stands for the number of 4-bit sub-quantizers."""
    share: int
    """Dimensions of each sub-quantizer."""
    reaches: float
    """Recall@10 with all candidates reranked, rounded down from what was measured."""

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
    """A FAISS factory string, and a remark if a limit decided it."""

    factory: str
    remark: str = ""


def choose_factory(
    factory: str, vectors: int, width: int, exact_below: int, recall: float = 0.95, max_bytes: float | None = None
) -> Choice:
    """Choose an index over `vectors` vectors of `width` dimensions; an explicit factory string is returned unchanged.

    `auto` is exact while that is fast, and otherwise inverted lists (about 4 sqrt(N), a power of two) of 4-bit
    codes that are scanned in registers, with a finer copy of the vectors to rerank candidates: in 8 bits, or in 16 (the
    precision of the embeddings) for a recall that 8 bits do not reach. If that, or the exact index, takes more than
    `max_bytes`, the copy becomes coarser and is finally left out. The chosen index can always be built.
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
        ConfigurationError: FAISS does not know the factory string, or the size of its codes.
    """
    try:
        whole = faiss.index_factory(width, factory)
        each, fixed = _vector_bytes(whole)
    except RuntimeError as error:
        raise unknown_factory(factory, width) from error
    return vectors * each + fixed


def unknown_factory(factory: str, width: int) -> ConfigurationError:
    """Return the error for a factory string that FAISS refuses for vectors of this width."""
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
    """Return the bytes of an index for each vector, and those that do not depend on their number."""
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
