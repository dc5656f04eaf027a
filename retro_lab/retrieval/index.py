"""The `index` stage: an index over the chunks of one database shard, tuned and measured on held-out chunks."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retro_lab import console
from retro_lab.artifacts.manifest import damaged
from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.config import IndexConfig
from retro_lab.retrieval.embeddings import Embeddings
from retro_lab.retrieval.factory import EXACT, POINTS_PER_LIST, choose_factory
from retro_lab.retrieval.vectors import AUTO, VectorIndex, distances

INDEX_NAME = "index.faiss"
RECALL = "recall@"
"""Prefix of the names of facts that give a recall; the number of neighbors follows."""
SMALLEST_SAMPLE = 65_536
"""Fewest training vectors of an index, whose codes need them too if it has few lists."""
RECALL_QUERIES = 1000
RECALL_AT = 10
"""Neighbors for which the search parameters are tuned."""
QUERIES_AT_ONCE = 64
"""Held-out chunks whose neighbors' vectors are in memory at once."""
TIE = 1e-5
"""Relative difference below which two distances count as equal: repeated text has equal vectors."""
BLOCK = 65_536


@dataclass(frozen=True)
class IndexFacts:
    """Facts of an `index` artifact, besides its recalls."""

    factory: str
    """FAISS factory string."""
    remark: str
    """Why this is not the index that was requested; empty if it is."""
    search: str
    """FAISS search parameters; empty for an exact index."""
    vectors: int
    bytes_per_vector: float


class IndexStage(Stage):
    """Index the embeddings of chunks from `start` up to `stop`."""

    name = "index"
    version = 3
    unit = "vectors"

    def __init__(
        self,
        embeddings: Embeddings,
        start: int,
        stop: int,
        config: IndexConfig,
        queries: Embeddings,
        stored: int,
        seed: int,
    ) -> None:
        """Build the index that `config` describes.

        Args:
            embeddings: Vectors to index.
            start: First chunk.
            stop: Chunk after the last one.
            config: Kind, recall and size of the index.
            queries: Embeddings of held-out documents; search parameters are tuned and recall is measured on a sample.
            stored: Neighbors that searches will store for each chunk; recall is measured for that many too.
            seed: Of the training sample and the sample of queries.
        """
        self.embeddings = embeddings
        self.start = start
        self.stop = stop
        self.config = config
        self.queries = queries
        self.stored = stored
        self.seed = seed
        self.choice = choose_factory(
            config.factory,
            stop - start,
            embeddings.width,
            config.exact_below,
            config.recall,
            config.max_bytes,
        )

    @property
    def factory(self) -> str:
        """The FAISS factory string."""
        return self.choice.factory

    def settings(self) -> Mapping[str, Any]:
        """Return factory, metric and range of chunks; training and tuning matter only if the index is not exact."""
        settings = {
            "factory": self.factory,
            "start": self.start,
            "stop": self.stop,
            "metric": self.config.metric,
        }
        if self.factory == EXACT:
            return settings
        tuned = {"recall": self.config.recall} if self.config.search == AUTO else {}
        return (
            settings
            | tuned
            | {
                "training_vectors": self.config.training_vectors,
                "search": self.config.search,
                "stored": self.stored,
                "seed": self.seed,
            }
        )

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the embeddings, and those that the index is tuned on."""
        if self.factory == EXACT:
            return {"embeddings": self.embeddings.artifact}
        return {"embeddings": self.embeddings.artifact, "queries": self.queries.artifact}

    def libraries(self) -> Mapping[str, int]:
        """Return FAISS, whose defaults change with its minor versions."""
        return {"faiss": 2}

    def shard_sizes(self) -> Sequence[int]:
        """Return the number of vectors: one shard."""
        return [self.stop - self.start]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Train, fill and tune the index, write `index.faiss`, and measure it.

        The file contains the search parameters, so a search always uses the measured ones. Queries per second (on all
        threads) differ from build to build, so they are shown but not written.

        Raises:
            ConfigurationError: FAISS does not know the factory string, or needs more than `index.training_vectors`.
        """
        index, factory, remark = self._train()
        if remark:
            console.status("index", remark)
        for first in range(self.start, self.stop, BLOCK):
            vectors = self.embeddings.range(first, min(first + BLOCK, self.stop))
            index.add(vectors)
            advance(len(vectors))
        facts = self._tune(index, exact=factory == EXACT)
        path = folder / INDEX_NAME
        index.write(path)
        return {
            "factory": factory,
            "remark": remark,
            "metric": self.config.metric,
            "vectors": len(index),
            "bytes_per_vector": round(path.stat().st_size / len(index), 1),
            **facts,
        }

    def _train(self) -> tuple[VectorIndex, str, str]:
        """Create the empty index and train it on a random sample; a sample in document order is half as good.

        Returns:
            The index; its factory string, which is `EXACT` if there are too few vectors to train on; and a remark that
            may be empty.
        """
        width, metric = self.embeddings.width, self.config.metric
        index = VectorIndex.create(self.factory, width, metric)
        if index.is_trained:
            return index, self.factory, self.choice.remark
        count = self.stop - self.start
        wanted = self.config.training_vectors or max(POINTS_PER_LIST * index.lists, SMALLEST_SAMPLE)
        sample = np.random.default_rng(self.seed).choice(count, min(wanted, count), replace=False)
        try:
            index.train(self.embeddings.rows(np.sort(sample) + self.start))
        except RuntimeError as error:
            if len(sample) < count:
                raise ConfigurationError(
                    f"index.factory={self.factory} cannot be trained on index.training_vectors={len(sample)}; "
                    "take more, or null for as many as it needs."
                ) from error
            remark = f"{count} vectors are too few to train {self.factory} on; searching exactly"
            return VectorIndex.create(EXACT, width, metric), EXACT, remark
        return index, self.factory, self.choice.remark

    def _tune(self, index: VectorIndex, *, exact: bool) -> dict[str, Any]:
        """Set the search parameters, and return them with their recall.

        They are tuned for the first `RECALL_AT` neighbors, which is more than most models read. The recall of all
        stored neighbors is lower, so it is measured as well, in the same search.
        """
        if exact:
            return {"search": "", f"{RECALL}{RECALL_AT}": 1.0}
        held_out = self.queries.chunks
        sample = np.random.default_rng(self.seed).permutation(held_out)[:RECALL_QUERIES]
        queries = self.queries.rows(np.sort(sample))
        recall_of = self._recall_of(queries, min(max(self.stored, RECALL_AT), len(index)))
        if self.config.search == AUTO:
            parameters = index.tune(queries, min(RECALL_AT, len(index)), recall_of, self.config.recall)
        else:
            parameters = self.config.search
            index.set_parameters(parameters)
        start = time.perf_counter()
        _, ids = index.search(queries, min(self.stored, len(index)))
        speed = len(queries) / (time.perf_counter() - start)
        recalls = {count: recall_of(ids[:, :count]) for count in sorted({min(RECALL_AT, self.stored), self.stored})}
        console.status("index", f"{speed:,.0f} queries a second for {self.stored} neighbors")
        first, recall = next(iter(recalls.items()))
        if recall < self.config.recall:
            console.status(
                "index", f"{RECALL}{first} is {recall:.3f}, not the {self.config.recall} asked for, with {parameters}"
            )
        return {
            "search": parameters,
            **{f"{RECALL}{count}": round(recall, 4) for count, recall in recalls.items()},
            "measured_on": f"{len(queries)} held-out chunks",
        }

    def _recall_of(self, queries: np.ndarray, most: int) -> Callable[[np.ndarray], float]:
        """Search exactly, and return the function that measures the recall of found ids.

        For ids [queries, k], k at most `most`, it is the share of the k nearest that was found. Any neighbor as near
        as the last of the exact ones counts as found.
        """
        metric = self.config.metric
        exact = VectorIndex.create(EXACT, queries.shape[1], metric)
        nearest = np.zeros((len(queries), 0), np.float32)
        for first in range(self.start, self.stop, BLOCK):
            last = min(first + BLOCK, self.stop)
            exact.replace(self.embeddings.range(first, last))
            _, ids = exact.search(queries, min(most, last - first))
            nearest = np.sort(np.concatenate([nearest, self._distances(queries, ids + first)], 1), 1)[:, :most]
        farthest = nearest + TIE * np.abs(nearest)

        def recall(ids: np.ndarray) -> float:
            found = self._distances(queries, np.maximum(ids, 0) + self.start)
            return float(((ids >= 0) & (found <= farthest[:, [ids.shape[1] - 1]])).mean())

        return recall

    def _distances(self, queries: np.ndarray, chunks: np.ndarray) -> np.ndarray:
        """Distance of each query, [n, d], to the embeddings of its own `chunks`, [n, k]; [n, k]."""
        parts = [
            distances(
                queries[first : first + QUERIES_AT_ONCE],
                self.embeddings.rows(chunks[first : first + QUERIES_AT_ONCE]),
                self.config.metric,
            )
            for first in range(0, len(queries), QUERIES_AT_ONCE)
        ]
        return np.concatenate(parts)

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Return the facts of the only shard."""
        return facts[0]


class Index:
    """Read-only view of an `index` artifact, over the chunks from `start` up to `stop` of its store.

    Attributes:
        facts: Kind and size of the index.
        recalls: Recall of the nearest neighbors of held-out chunks, by their number.
    """

    def __init__(self, artifact: Artifact) -> None:
        """Read the manifest of `artifact`; `open` reads the index itself.

        Raises:
            ArtifactError: The manifest lacks facts of an index.
        """
        self.artifact = artifact
        self.start: int = artifact.settings["start"]
        self.stop: int = artifact.settings["stop"]
        self.facts = artifact.read_facts(IndexFacts)
        found = {fact.removeprefix(RECALL): share for fact, share in artifact.facts.items() if fact.startswith(RECALL)}
        self.recalls: dict[int, float] = {int(count): found[count] for count in sorted(found, key=int)}

    def query_flops(self, width: int) -> float | None:
        """Return the FLOPs of one search: two for each dimension of what is compared; None for a graph.

        In inverted lists these are the centroids and, of the vectors, the share that is probed, as if not compressed.

        Args:
            width: Of a vector.
        """
        lists = re.match(r"IVF(\d+)", self.facts.factory)
        if lists is None:
            return 2.0 * width * self.facts.vectors if self.facts.factory == EXACT else None
        count, probed = int(lists[1]), re.search(r"nprobe=(\d+)", self.facts.search)
        share = min(1.0, (int(probed[1]) if probed else 1) / count)
        return 2.0 * width * (count + share * self.facts.vectors)

    def open(self) -> VectorIndex:
        """Read the index into memory, with the search parameters it was measured with.

        Raises:
            ArtifactError: FAISS cannot read it.
        """
        path = self.artifact.shard(0) / INDEX_NAME
        try:
            opened = VectorIndex.read(path, self.artifact.settings["metric"])
        except (RuntimeError, MemoryError) as error:
            raise damaged(path, "FAISS cannot read it", self.artifact.folder) from error
        if len(opened) != self.facts.vectors:
            reason = f"it holds {len(opened)} vectors, not {self.facts.vectors}"
            raise damaged(path, reason, self.artifact.folder)
        return opened
