"""`VectorIndex`: the project's small interface to FAISS.

Distances are ascending for every metric: squared L2 of the given vectors (Borgeaud et al. 2022, Sec. 2.1), the negative
inner product, or, for the cosine, squared L2 between vectors of length one, 2 - 2 cos.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from retro_lab import console
from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.config import Metric
from retro_lab.retrieval.factory import unknown_factory

BLAS_THRESHOLD = 20
"""Below this number of (queries x width) FAISS uses a loop that is up to 8 times slower than a matrix product; its own
default is 128,000, which is 333 queries at width 384."""
AUTO = "auto"
CANDIDATE_FACTORS = (1, 2, 4, 8, 16, 32)
"""Candidates that are reranked for each neighbor wanted."""
FEW_NEIGHBORS = 10
"""Neighbors for which `k_factor_rf` is tuned."""
LEAST_CANDIDATES = 8
"""Fewest candidates reranked for each neighbor if more neighbors than that are wanted. For 116 neighbors among 319,632
chunks tuned to 32: recall@10 0.974 and recall@100 0.949 at 2,900 queries a second, with 32 0.975 and 0.956 at 770."""
CANDIDATES_AT_ONCE = 2**24
"""Largest number of candidates of all queries of one call of FAISS: 0.2 GB of ids and distances."""
RANKING_COST = 12
"""Time to rerank a candidate, in scans of its 4-bit code; only the ratio of costs matters."""
CLOSE_TO_BEST = 0.002
"""Recall given up for speed if the wanted recall is out of reach."""
GPU_NEIGHBORS = 2048
"""Most neighbors that FAISS finds on a GPU in one search."""

RecallOf = Callable[[np.ndarray], float]
"""Returns the recall of found ids, [queries, k]."""


class VectorIndex:
    """Vectors of one width under one metric, found by FAISS; ids count from 0 in the order of adding."""

    def __init__(self, index: faiss.Index, metric: str) -> None:
        """Use a FAISS index that was made for `metric`."""
        self._index = index
        self._metric = metric
        self._on_gpus: faiss.Index | None = None

    @classmethod
    def create(cls, factory: str, width: int, metric: str) -> "VectorIndex":
        """Create the empty index that the FAISS `factory` string describes.

        Raises:
            ConfigurationError: The metric is unknown, or the factory string is for vectors of this width.
        """
        if metric not in list(Metric):
            raise ConfigurationError(f"index.metric={metric} is not one of {', '.join(Metric)}.")
        kind = faiss.METRIC_INNER_PRODUCT if metric == "inner_product" else faiss.METRIC_L2
        try:
            return cls(faiss.index_factory(width, factory, kind), metric)
        except RuntimeError as error:
            raise unknown_factory(factory, width) from error

    @classmethod
    def read(cls, path: Path, metric: str) -> "VectorIndex":
        """Read what `write` wrote, with its search parameters, into memory, and onto GPUs if FAISS supports it."""
        opened = cls(faiss.read_index(str(path)), metric)
        opened._on_gpus = _copy_to_gpus(opened._index)
        return opened

    def write(self, path: Path) -> None:
        """Write vectors and search parameters."""
        faiss.write_index(self._index, str(path))

    def __len__(self) -> int:
        """Return the number of vectors."""
        return int(self._index.ntotal)

    @property
    def is_trained(self) -> bool:
        """Whether vectors can be added."""
        return bool(self._index.is_trained)

    @property
    def lists(self) -> int:
        """Number of inverted lists, 0 if there are none."""
        ivf = _inverted_lists(self._index)
        return int(ivf.nlist) if ivf is not None else 0

    def train(self, sample: np.ndarray) -> None:
        """Learn centroids and codes from `sample`, float32 [n, d]; centroids on GPUs if there are any.

        Raises:
            RuntimeError: The sample is too small for FAISS.
        """
        ivf = _inverted_lists(self._index)
        on_gpus = None
        if ivf is not None and faiss.get_num_gpus() > 0:
            on_gpus = faiss.index_cpu_to_all_gpus(faiss.IndexFlat(ivf.d, self._index.metric_type))
            ivf.clustering_index = on_gpus
        with _matrix_products(), self._reproducibly():
            self._index.train(self._prepare(sample))
        if on_gpus is not None:
            ivf.clustering_index = None  # it is freed when this function returns

    def add(self, vectors: np.ndarray) -> None:
        """Add `vectors`, float32 [n, d]."""
        with _matrix_products(), self._reproducibly():
            self._index.add(self._prepare(vectors))

    def replace(self, vectors: np.ndarray) -> None:
        """Replace all vectors with `vectors`, float32 [n, d]."""
        self._index.reset()
        self.add(vectors)

    def search(self, queries: np.ndarray, count: int, probe_scale: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Find the `count` nearest vectors of each query.

        Args:
            queries: float32 [n, d].
            count: Neighbors of each query.
            probe_scale: Factor by which to multiply the number of inverted lists that are visited.

        Returns:
            Distances, float32 [n, count], ascending, and ids, int64 [n, count], padded with infinity and -1.
        """
        index = (self._on_gpus if probe_scale == 1 and count <= GPU_NEIGHBORS else None) or self._index
        factor = self._candidates_each(count)
        at_once = max(1, int(CANDIDATES_AT_ONCE / count / factor))
        with _matrix_products(), self._visiting(probe_scale), self._ranking(factor):
            parts = [
                index.search(self._prepare(queries[first : first + at_once]), count)
                for first in range(0, max(1, len(queries)), at_once)
            ]
        found, ids = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        distances = -found if self._metric == "inner_product" else found
        return np.where(ids < 0, np.float32(np.inf), distances), ids

    def largest_probe_scale(self) -> int:
        """Return the probe scale at which every inverted list is visited."""
        ivf = _inverted_lists(self._index)
        return -(-ivf.nlist // ivf.nprobe) if ivf is not None else 1

    def set_parameters(self, parameters: str) -> None:
        """Set search parameters, such as `nprobe=64,k_factor_rf=4` or `efSearch=128`.

        Raises:
            ConfigurationError: The index does not have one of the parameters.
        """
        space: Any = faiss.ParameterSpace()  # whose type stub knows one of the two overloads
        try:
            space.set_index_parameters(self._index, parameters)
        except RuntimeError as error:
            raise ConfigurationError(
                f"index.search={parameters} cannot be set on this index; use auto, or a parameter that it has: "
                "nprobe for IVF, efSearch for HNSW, k_factor_rf for Refine."
            ) from error

    def tune(self, queries: np.ndarray, count: int, recall_of: RecallOf, wanted: float) -> str:
        """Set and return the cheapest search parameters whose recall on `queries` is at least `wanted`.

        Costs are counted, not timed, so that the same vectors give the same parameters on any machine. If no parameters
        reach the wanted recall, the cheapest that come close to the best are set.

        Args:
            queries: float32 [n, d].
            count: Neighbors of each query.
            recall_of: Recall of the ids found for these queries.
            wanted: Share of the exact neighbors that should be found.
        """
        tried: list[tuple[float, float, str]] = []

        def recall_with(probes: int, factor: int) -> float:
            parameters = self._named(probes, factor)
            self.set_parameters(parameters)
            recall = recall_of(self.search(queries, count)[1])
            tried.append((recall, self._cost(probes, factor * count), parameters))
            return recall

        for factor, probe_counts in self._grid():  # recall grows with the probes: look for the fewest that are enough
            bisect_left(probe_counts, wanted, key=partial(recall_with, factor=factor))
        if not tried:
            return ""
        enough = min(wanted, max(recall for recall, _, _ in tried) - CLOSE_TO_BEST)
        _, parameters = min((cost, parameters) for recall, cost, parameters in tried if recall >= enough)
        self.set_parameters(parameters)
        return parameters

    def _grid(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each candidate factor with the probes to try, ascending: lists to visit, or candidates on a graph."""
        lists = self.lists
        probe_counts = [1]
        if lists:
            steps = (round(2 ** (eighth / 8)) for eighth in range(8 * lists.bit_length()))
            probe_counts = sorted({lists, *(n for n in steps if n < lists)})
        elif _graph(self._index) is not None:
            probe_counts = [round(2 ** (quarter / 4)) for quarter in range(16, 45)]
        elif not _is_refined(self._index):
            return
        for factor in CANDIDATE_FACTORS if _is_refined(self._index) else (1,):
            yield factor, probe_counts

    def _named(self, probes: int, factor: int) -> str:
        """Return search parameters in the form that FAISS reads."""
        parts = []
        if self.lists:
            parts.append(f"nprobe={probes}")
            if _graph(faiss.downcast_index(_inverted_lists(self._index).quantizer)) is not None:
                parts.append(f"quantizer_efSearch={max(64, 2 * probes)}")
        elif _graph(self._index) is not None:
            parts.append(f"efSearch={probes}")
        if _is_refined(self._index):
            parts.append(f"k_factor_rf={factor}")
        return ",".join(parts)

    def _cost(self, probes: int, candidates: int) -> float:
        scanned = probes * len(self) / self.lists if self.lists else probes
        return scanned + (RANKING_COST * candidates if _is_refined(self._index) else 0)

    def _prepare(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        return normalize(vectors) if self._metric == "cosine" else vectors

    @contextmanager
    def _reproducibly(self) -> Iterator[None]:
        """Build graphs on one thread: on several, the order of insertion, and so the graph, is random."""
        threads = faiss.omp_get_max_threads()
        ivf = _inverted_lists(self._index)
        graphs = [self._index, faiss.downcast_index(ivf.quantizer) if ivf is not None else None]
        if any(index is not None and _graph(index) is not None for index in graphs):
            faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            faiss.omp_set_num_threads(threads)

    def _candidates_each(self, count: int) -> float:
        """Return how many candidates to rerank for each neighbor; the parameter is tuned for `FEW_NEIGHBORS`.

        With the same total of candidates, the first neighbors are found as well for any number of neighbors.
        """
        if not _is_refined(self._index):
            return 1
        factor = float(self._refined.k_factor)
        return max(min(factor, LEAST_CANDIDATES), factor * FEW_NEIGHBORS / count)

    @property
    def _refined(self) -> Any:
        """The index as one that reranks candidates."""
        return self._index

    @contextmanager
    def _ranking(self, factor: float) -> Iterator[None]:
        if not _is_refined(self._index):
            yield
            return
        usual, self._refined.k_factor = self._refined.k_factor, factor
        try:
            yield
        finally:
            self._refined.k_factor = usual

    @contextmanager
    def _visiting(self, probe_scale: int) -> Iterator[None]:
        ivf = _inverted_lists(self._index)
        if ivf is None or probe_scale == 1:
            yield
            return
        usual = ivf.nprobe
        ivf.nprobe = min(usual * probe_scale, ivf.nlist)
        try:
            yield
        finally:
            ivf.nprobe = usual


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors, [..., d], scaled to length one; a vector of zeros is unchanged."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def distances(queries: np.ndarray, vectors: np.ndarray, metric: str) -> np.ndarray:
    """Return the distance of each query, [n, d], to each of its own vectors, [n, k, d], term by term; [n, k]."""
    if metric == "inner_product":
        return -np.einsum("qw,qkw->qk", queries, vectors)
    if metric == "cosine":
        queries, vectors = normalize(queries), normalize(vectors)
    return ((queries[:, None] - vectors) ** 2).sum(-1)


@contextmanager
def _matrix_products() -> Iterator[None]:
    """Make FAISS use matrix products for few queries too; its setting applies to the whole process."""
    usual = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = BLAS_THRESHOLD
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = usual


def _inverted_lists(index: faiss.Index) -> Any:
    """Return the part of an index that has inverted lists, or None."""
    try:
        return faiss.downcast_index(faiss.extract_index_ivf(index))
    except RuntimeError:
        return None


def _is_refined(index: faiss.Index) -> bool:
    return isinstance(index, faiss.IndexRefine)


def _graph(index: faiss.Index) -> Any:
    """Return the HNSW graph that an index searches by, or None."""
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.base_index)
    return index.hnsw if isinstance(index, faiss.IndexHNSW) else None


def _copy_to_gpus(index: faiss.Index) -> faiss.Index | None:
    """Copy an index to all GPUs; None if there are none or FAISS does not support it there (4-bit codes, graphs)."""
    if not faiss.get_num_gpus():
        return None
    try:
        return faiss.index_cpu_to_all_gpus(index)
    except RuntimeError as error:
        console.status("index", f"searching on the processor: FAISS has no such index on GPUs ({_first_line(error)})")
        return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
