"""Decontamination: training documents that nearly duplicate held-out ones are dropped (Borgeaud et al. 2022, Sec. 2.1).

Two documents are compared by the Jaccard similarity of their sets of 13-grams, the size of the intersection over that
of the union. Held-out text is small, so an index from each of its 13-grams to the documents with it gives the
similarity of every pair exactly. Of what is kept, the nearest training document of each held-out one is recorded.

documents ─► held_out (index of the 13-grams of both held-out splits) ─► decontamination (documents, fewer of them)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.documents import HELD_OUT, Split
from retro_lab.corpus.filtering import MAX_EXAMPLES, Dropped, FilterStage
from retro_lab.corpus.grams import WORDS_IN_GRAM, grams_of
from retro_lab.corpus.parquet import Piece, pieces
from retro_lab.errors import ConfigurationError, CorpusError

ENCODED_NAME = "grams.bin"
"""File of a shard of held-out documents: their grams, concatenated."""
SIZES_NAME, IDS_NAME = "sizes.npy", "documents.parquet"
"""Files of a shard and of the index: the number of grams of each document, and its split and id."""
GRAMS_NAME, STARTS_NAME, OWNERS_NAME = "grams.npy", "starts.npy", "owners.npy"
"""Files of the index: distinct grams in ascending order, where each one's documents begin, and those documents."""
SIMILARITIES_NAME, NEAREST_NAME = "similarities.npy", "nearest.parquet"
"""Files of a decontaminated shard: the largest similarity of each held-out document to those kept, and to which. The
artifact has one `nearest.parquet` for all shards, with both."""
EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Edges of the ranges of similarity that held-out documents are counted in; each range is without its end, except for
the last."""


@dataclass(frozen=True)
class Nearest:
    """How similar the nearest training document is to each held-out document of a split, of those that were kept."""

    median: float
    largest: float
    document: str
    """The held-out document with the largest similarity."""
    like: str | None
    """The training document that it is similar to; None if no document shares a 13-gram with the split."""
    counts: list[int]
    """Held-out documents in each range of similarity (`EDGES`)."""


@dataclass(frozen=True)
class DecontaminationFacts:
    """Facts of a `decontamination` artifact, besides those of the documents it was made from."""

    decontamination: Dropped
    nearest: dict[Split, Nearest]


class HeldOutStage(Stage):
    """An index from each 13-gram of the held-out documents to the documents with it.

    Memory when it is finished: about 40 bytes for each 13-gram of the held-out text, roughly one for each word.
    """

    name = "held_out"
    version = 3
    unit = "documents"
    combines_shards = True

    def __init__(self, documents: Artifact) -> None:
        """Read the validation and the test split of `documents`."""
        self.documents = documents

    def settings(self) -> Mapping[str, Any]:
        """Return the words in a gram."""
        return {"words_in_gram": WORDS_IN_GRAM}

    def inputs(self) -> Mapping[str, Artifact]:
        """The documents."""
        return {"documents": self.documents}

    @cached_property
    def _pieces(self) -> list[tuple[Split, Piece]]:
        return [(split, piece) for split in HELD_OUT for piece in pieces(self.documents, split)]

    def shard_sizes(self) -> Sequence[int]:
        """Return the held-out documents in each piece."""
        return [piece.documents for _, piece in self._pieces]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write the documents' grams, concatenated, and how many each has, with its split and id."""
        split, piece = self._pieces[shard]
        ids: list[str] = []
        sizes: list[int] = []
        with (folder / ENCODED_NAME).open("wb") as file:
            for batch in piece.read(["id", "text"]):
                for row in batch.to_pylist():
                    grams = grams_of(row["text"])
                    grams.tofile(file)
                    ids.append(row["id"])
                    sizes.append(len(grams))
                advance(batch.num_rows)
        np.save(folder / SIZES_NAME, np.array(sizes, np.int64))
        documents = {"split": pa.array([split] * len(ids)), "id": pa.array(ids, pa.large_string())}
        pq.write_table(pa.table(documents), folder / IDS_NAME)
        return {}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Sort the grams of all documents, and count the documents."""
        sizes = np.concatenate([np.load(shard / SIZES_NAME, allow_pickle=False) for shard in shards])
        owners = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        grams = np.concatenate([np.fromfile(shard / ENCODED_NAME, np.uint64) for shard in shards])
        order = np.argsort(grams, kind="stable")
        distinct, starts = np.unique(grams[order], return_index=True)
        np.save(folder / GRAMS_NAME, distinct)
        np.save(folder / STARTS_NAME, np.append(starts, len(grams)).astype(np.int64))
        np.save(folder / OWNERS_NAME, owners[order])
        np.save(folder / SIZES_NAME, sizes)
        pq.write_table(pa.concat_tables(pq.read_table(shard / IDS_NAME) for shard in shards), folder / IDS_NAME)
        return {"documents": len(sizes)}


class DecontaminationStage(FilterStage):
    """Documents as the `documents` stage writes them, without training documents that are similar to held-out ones.

    The index of the held-out documents is memory-mapped, 20 bytes for each of its 13-grams; training documents are read
    a few at a time. `nearest.parquet` names the nearest training document, of those kept, of each held-out one.
    """

    name = "decontamination"
    version = 6

    def __init__(self, documents: Artifact, held_out: Artifact, similarity: float) -> None:
        """Drop training documents whose similarity to a document in `held_out` is at least `similarity`.

        Raises:
            ConfigurationError: The similarity is not above 0 and at most 1.
        """
        if not 0 < similarity <= 1:
            raise ConfigurationError(
                f"decontamination.similarity={similarity} is not above 0 and at most 1; null drops no document."
            )
        super().__init__(documents)
        self.held_out = held_out
        self.similarity = similarity
        self._index: HeldOutDocuments | None = None

    def settings(self) -> Mapping[str, Any]:
        """Return the similarity."""
        return {"similarity": self.similarity}

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the documents, and the index of held-out ones."""
        return {"documents": self.documents, "held_out": self.held_out}

    @contextmanager
    def prepare(self) -> Iterator[None]:
        """Open the index of the held-out documents."""
        self._index = HeldOutDocuments(self.held_out)
        try:
            yield
        finally:
            self._index = None

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write what is kept of a piece and, for the training split, the nearest document of each held-out one."""
        assert self._index is not None
        self._examples: list[str] = []
        self._largest = np.zeros(len(self._index.ids))
        self._like: list[str | None] = [None] * len(self._index.ids)
        facts = super().write_shard(shard, folder, advance)
        if facts["split"] == "train":
            np.save(folder / SIMILARITIES_NAME, self._largest)
            pq.write_table(pa.table({"nearest": pa.array(self._like, pa.large_string())}), folder / NEAREST_NAME)
        return {**facts, "examples": self._examples}

    def _drops(self, number: int, row: Mapping[str, Any]) -> bool:
        assert self._index is not None
        documents, similarities = self._index.similarities(row["text"])
        if (similarities >= self.similarity).any():
            if len(self._examples) < MAX_EXAMPLES:
                first = int(np.argmax(similarities))
                other = self._index.ids[documents[first]]
                self._examples.append(f"{row['id']}: {similarities[first]:.2f} like {other}")
            return True
        nearer = similarities > self._largest[documents]
        self._largest[documents[nearer]] = similarities[nearer]
        for document in documents[nearer].tolist():
            self._like[document] = row["id"]
        return False

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Add up the counts, and write which training document is nearest to each held-out one.

        Raises:
            CorpusError: No document to train on is left.
        """
        kept, dropped = self._counts(facts)
        if not kept:
            raise CorpusError(
                f"All {dropped['documents']} documents to train on are at least {self.similarity} like held-out ones; "
                "check what is held out, or set decontamination=none."
            )
        train = [shard for shard, fact in zip(shards, facts, strict=True) if fact["split"] == "train"]
        table = self._nearest(train)
        pq.write_table(table, folder / NEAREST_NAME)
        examples = [example for fact in facts for example in fact["examples"]][:MAX_EXAMPLES]
        found = DecontaminationFacts(Dropped(self.similarity, dropped, examples), _summaries(table))
        return {**self.documents.facts, "train": kept, **asdict(found)}

    def _nearest(self, train: Sequence[Path]) -> pa.Table:
        """Merge the shards of the training split; of equally similar documents the first is named."""
        documents = pq.read_table(self.held_out.folder / IDS_NAME)
        largest = np.zeros(documents.num_rows)
        like: list[str | None] = [None] * documents.num_rows
        for shard in train:
            similarities = np.load(shard / SIMILARITIES_NAME, allow_pickle=False)
            names = pq.read_table(shard / NEAREST_NAME)["nearest"]
            for document in np.flatnonzero(similarities > largest).tolist():
                largest[document], like[document] = similarities[document], names[document].as_py()
        return documents.append_column("similarity", pa.array(largest)).append_column(
            "nearest", pa.array(like, pa.large_string())
        )


class HeldOutDocuments:
    """Held-out documents and the index of their 13-grams."""

    def __init__(self, held_out: Artifact) -> None:
        """Open the arrays of a `held_out` artifact."""
        self.ids: list[str] = pq.read_table(held_out.folder / IDS_NAME)["id"].to_pylist()
        # Plain views of the memory maps: indexing np.memmap itself is slower.
        names = (GRAMS_NAME, STARTS_NAME, OWNERS_NAME, SIZES_NAME)
        self._grams, self._starts, self._owners, self._sizes = (np.asarray(held_out.array(name)) for name in names)

    def similarities(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the documents that share a 13-gram with `text`, ascending, and their Jaccard similarities to it."""
        grams = grams_of(text)
        places = np.minimum(np.searchsorted(self._grams, grams), len(self._grams) - 1)
        places = places[self._grams[places] == grams]
        starts, counts = self._starts[places], self._starts[places + 1] - self._starts[places]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        documents, common = np.unique(self._owners[np.repeat(starts, counts) + within], return_counts=True)
        return documents, common / (len(grams) + self._sizes[documents] - common)


def _summaries(table: pa.Table) -> dict[Split, Nearest]:
    """Summarize the similarities of each split."""
    found: dict[Split, Nearest] = {}
    for split in HELD_OUT:
        rows = table.filter(pc.equal(table["split"], split))
        similarities = rows["similarity"].to_numpy()
        first = int(np.argmax(similarities))
        found[split] = Nearest(
            median=float(np.median(similarities)),
            largest=float(similarities[first]),
            document=rows["id"][first].as_py(),
            like=rows["nearest"][first].as_py(),
            counts=np.histogram(similarities, EDGES)[0].tolist(),
        )
    return found
