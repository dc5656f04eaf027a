"""The `index` stage: a FAISS index over the chunks of one database shard, and what it measured of itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.embeddings import read_embeddings

# Below this number of (queries x width) FAISS leaves matrix products for a loop that is up to 8 times slower; its own
# default is 128,000, which is 333 queries at width 384.
faiss.cvar.distance_compute_blas_threshold = 20

POINTS_PER_LIST = 40
"""Training vectors for each inverted list."""
RECALL_QUERIES = 500
RECALL_AT = 10
ADD_BATCH = 65_536


def choose_factory(factory: str, vectors: int, width: int, exact_below: int) -> str:
    """Return the FAISS factory string for an index over `vectors` vectors of `width`.

    `auto` is exact while that is quick, and beyond that inverted lists (about 4 sqrt(N), a power of two) of 4-bit
    codes that are scanned in registers, with an 8-bit copy of the vectors to rank the candidates again.
    """
    if factory != "auto":
        return factory
    if vectors <= exact_below:
        return "Flat"
    lists = 2 ** round(np.log2(4 * np.sqrt(vectors)))
    coarse = "_HNSW32" if lists >= 65_536 else ""
    return f"IVF{lists}{coarse},PQ{width // 4}x4fs,Refine(SQ8)"


class IndexStage(Stage):
    """Index the embeddings of chunks `start` up to `stop`, in squared L2 distance on vectors as they are."""

    name = "index"
    unit = "vectors"

    def __init__(self, embeddings: Artifact, start: int, stop: int, factory: str, nprobe: int, seed: int) -> None:
        """Build the index that the FAISS `factory` string describes."""
        self.embeddings = embeddings
        self.start = start
        self.stop = stop
        self.factory = factory
        self.nprobe = nprobe
        self.seed = seed

    def settings(self) -> Mapping[str, Any]:
        """Factory string and range of chunks; nprobe and seed matter only for an index that is trained."""
        settings = {"factory": self.factory, "start": self.start, "stop": self.stop, "metric": "squared L2"}
        return settings if self.factory == "Flat" else settings | {"nprobe": self.nprobe, "seed": self.seed}

    def inputs(self) -> Mapping[str, Artifact]:
        """The embeddings."""
        return {"embeddings": self.embeddings}

    def shard_sizes(self) -> Sequence[int]:
        """One index."""
        return [self.stop - self.start]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Train and fill the index, write `index.faiss`, and measure recall against exact search.

        Raises:
            ConfigurationError: The factory string is not one of FAISS, or wants more training vectors than there are.
        """
        index = self._empty_index()
        for first in range(self.start, self.stop, ADD_BATCH):
            vectors = read_embeddings(self.embeddings, first, min(first + ADD_BATCH, self.stop))
            index.add(vectors)
            advance(len(vectors))
        path = folder / "index.faiss"
        faiss.write_index(index, str(path))
        return {
            "factory": self.factory,
            "vectors": index.ntotal,
            "bytes_per_vector": round(path.stat().st_size / index.ntotal, 1),
            f"recall@{RECALL_AT}": self._recall(index),
        }

    def _empty_index(self) -> faiss.Index:
        try:
            index = faiss.index_factory(self.embeddings.facts["width"], self.factory, faiss.METRIC_L2)
        except RuntimeError as error:
            raise ConfigurationError(
                f"index.factory={self.factory} is not a FAISS factory string for vectors of width "
                f"{self.embeddings.facts['width']}; use auto, Flat, or one such as IVF256,Flat."
            ) from error
        if index.is_trained:
            return index
        count = self.stop - self.start
        lists = _inverted_lists(index)
        rows = np.random.default_rng(self.seed).permutation(count)[: max(POINTS_PER_LIST * lists, 2**16)]
        vectors = np.concatenate([read_embeddings(self.embeddings, r, r + 1) for r in np.sort(rows) + self.start])
        try:
            index.train(vectors)
        except RuntimeError as error:
            raise ConfigurationError(
                f"index.factory={self.factory} cannot be trained on the {count} vectors of this database "
                "(too few); use index.factory=auto or fewer lists and codes."
            ) from error
        set_nprobe(index, self.nprobe)
        return index

    def _recall(self, index: faiss.Index) -> float:
        """Share of the exact 10 nearest neighbors that the index finds, for a sample of its own vectors."""
        if self.factory == "Flat":
            return 1.0
        rows = np.random.default_rng(self.seed).integers(self.start, self.stop, RECALL_QUERIES)
        queries = np.concatenate([read_embeddings(self.embeddings, r, r + 1) for r in rows])
        exact = faiss.IndexFlatL2(queries.shape[1])
        nearest: np.ndarray = np.zeros((len(queries), 0), np.int64)
        distances = np.zeros((len(queries), 0), np.float32)
        for first in range(self.start, self.stop, ADD_BATCH):
            exact.reset()
            exact.add(read_embeddings(self.embeddings, first, min(first + ADD_BATCH, self.stop)))
            found, ids = exact.search(queries, min(RECALL_AT, exact.ntotal))
            distances = np.concatenate([distances, found], 1)
            nearest = np.concatenate([nearest, ids + first - self.start], 1)
            best = np.argsort(distances, 1, kind="stable")[:, :RECALL_AT]
            distances = np.take_along_axis(distances, best, 1)
            nearest = np.take_along_axis(nearest, best, 1)
        _, found_ids = index.search(queries, RECALL_AT)
        hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found_ids, nearest, strict=True))
        return round(hits / nearest.size, 4)

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Pass on what the only shard measured."""
        return facts[0]


def set_nprobe(index: faiss.Index, nprobe: int) -> None:
    """Have an index with inverted lists visit `nprobe` of them (all, if it has fewer); others are left alone."""
    lists = _inverted_lists(index)
    if lists:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", min(nprobe, lists))


def _inverted_lists(index: faiss.Index) -> int:
    try:
        return int(faiss.extract_index_ivf(index).nlist)
    except RuntimeError:
        return 0


def open_index(index: Artifact) -> faiss.Index:
    """Read the index of an `index` artifact into memory, with its number of lists to visit set."""
    opened = faiss.read_index(str(index.folder / "00000" / "index.faiss"))
    set_nprobe(opened, index.manifest.recipe["settings"].get("nprobe", 1))
    return opened
