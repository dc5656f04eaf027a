"""What each stage writes is tied to its version: who changes the one has to raise the other.

`outputs.json` holds, for each stage and method, what it wrote for a small input, and the versions of its code, of its
libraries and of the stages before it, whose output is its input. With `RECORD_OUTPUTS=1` in the environment this file's
tests write it anew where one of them changed.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pipeline import RandomSentences, build_chunks

from retro_lab.artifacts.fingerprint import canonical_json
from retro_lab.artifacts.stage import Artifact, Stage
from retro_lab.corpus.decontamination import DecontaminationStage, HeldOutStage
from retro_lab.corpus.deduplication import DeduplicationStage
from retro_lab.corpus.documents import Document
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.near_copies import NearCopiesStage
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage
from retro_lab.retrieval.bm25 import BM25
from retro_lab.retrieval.config import FilterConfig, IndexConfig, Unit
from retro_lab.retrieval.controls import OracleStage, RandomSearcher, ShuffledStage
from retro_lab.retrieval.embeddings import Embeddings, EmbeddingsStage
from retro_lab.retrieval.filters import FilteredStage
from retro_lab.retrieval.index import Index, IndexStage
from retro_lab.retrieval.neighbors import Neighbors, NeighborsStage, Ranking, SearchStage
from retro_lab.retrieval.overlaps import OverlapsStage
from retro_lab.retrieval.random_databases import RandomPartStage
from retro_lab.retrieval.searchers import BM25Searcher, DenseSearcher

OUTPUTS = Path(__file__).with_name("outputs.json")
DENSE = {
    "exact": {"factory": "Flat"},
    "inverted lists": {"factory": "IVF4,Flat"},
    # With codes and copies that are learned from the smallest and largest numbers, no processor's rounding matters.
    "refined": {"factory": "IVF4,SQ4,Refine(SQ8)", "search": "nprobe=4,k_factor_rf=2"},
    "graph": {"factory": "HNSW8,Flat", "search": "efSearch=64"},
}
METHODS = [*DENSE, "bm25", "hybrid", "random"]
PIPELINE: list[type[Stage]] = [
    DocumentsStage, NearCopiesStage, DeduplicationStage, HeldOutStage, DecontaminationStage, TokenizerStage,
    TokensStage, EmbeddingsStage, IndexStage, SearchStage, NeighborsStage, OverlapsStage, ShuffledStage, OracleStage,
    RandomPartStage, FilteredStage,
]  # fmt: skip
FILTER = FilterConfig(longest_overlap=7, jaccard=0.9, other_documents=True, near_copies=0.2)
STORED = 24
WIDTH = 8


class Awkward(RandomSentences):
    """Documents of random words, near copies of held-out ones, and some that are dropped."""

    def read(self, part):
        documents = list(super().read(part))
        yield from documents
        held_out = next((document for split, document in documents if split == "validation"), None)
        if held_out is not None:
            yield "train", Document("copy", "random", held_out.text + " indeed")
        yield (
            "train",
            Document("of characters", "random", "\u4e00\u4e8c \x1b[0m a<|endoftext|>b\r\n\tc\u0301 \U0001f600"),
        )
        yield "train", Document("empty", "random", " \n")
        yield "train", Document("nul", "random", "a\0b")


class Directions(Stage):
    """Vectors of small whole numbers around far centers: their distances are exact on any processor."""

    name = "embeddings"
    unit = "chunks"

    def __init__(self, chunks, seed):
        self.chunks, self.seed = chunks, seed

    def settings(self):
        return {"chunks": self.chunks, "seed": self.seed}

    def shard_sizes(self):
        return [self.chunks]

    def write_shard(self, shard, folder, advance):
        draw = np.random.default_rng(self.seed)
        centers = np.array([[500, 0], [-500, 0], [0, 500], [0, -500]]).repeat(WIDTH // 2, axis=1)
        vectors = centers[draw.integers(len(centers), size=self.chunks)]
        vectors = vectors + draw.integers(-100, 101, (self.chunks, WIDTH))
        np.save(folder / "embeddings.npy", vectors.astype(np.float16))
        return {}

    def finish(self, shards, facts, folder):
        return {"chunks": self.chunks, "width": WIDTH, "shard_size": self.chunks}


@dataclass
class Built:
    """An artifact, and what of it must not change while its stage's version stays."""

    artifact: Artifact
    output: object


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, tiny_bert):
    return build_chunks(tmp_path_factory.mktemp("versions"), tiny_bert, Awkward(), similarity=0.8)


@pytest.fixture(scope="module")
def inputs(chunks):
    """Artifacts of the stages before the embeddings, by name."""
    return {
        folder.parent.name: Artifact(folder, found.manifest)
        for found in _lineage(chunks.stores["train"].artifact, chunks.artifacts)
        for folder in [found.folder]
    }


def _lineage(artifact, store):
    from retro_lab.artifacts.manifest import Manifest

    yield artifact
    for fingerprint in artifact.manifest.recipe["inputs"].values():
        (folder,) = store.root.glob(f"*/{fingerprint}")
        yield from _lineage(Artifact(folder, Manifest.read(folder)), store)


def content(artifact):
    """What the files of an artifact say; how Parquet compresses it is the library's matter."""
    said = {}
    for name in sorted(artifact.manifest.files):
        path = artifact.folder / name
        if name.endswith(".parquet"):
            said[name] = pq.read_table(path).to_pylist()
        elif name.endswith(".npy"):
            array = artifact.array(name)
            said[name] = [str(array.dtype), array.tolist()]
        else:
            said[name] = path.read_bytes().hex()
    return said


def digest(value):
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@pytest.fixture(scope="module")
def searched(chunks):
    """Index and search of each method, by method."""
    store, queries = chunks.stores["train"], chunks.stores["validation"]
    build = chunks.artifacts.build
    keys, held_out = (Embeddings(build(Directions(store.chunks, n))) for n, store in enumerate((store, queries)))
    bm25 = BM25(store, 1.5, 0.75)
    found = {}
    for method in METHODS:
        index = None
        searcher = BM25Searcher(store, bm25, 0, store.chunks)
        if method == "random":
            searcher = RandomSearcher(store, store, store.chunks, 0)
        elif method != "bm25":
            config = IndexConfig(**DENSE.get(method, DENSE["exact"]))
            index = Index(build(IndexStage(keys, 0, store.chunks, config, held_out, STORED, 0)))
            searcher = DenseSearcher(keys, index)
        ranking = Ranking(40, bm25) if method == "hybrid" else None
        found[method] = index, build(SearchStage(searcher, store, store, STORED, 40, ranking))
    return found


def found_by(index):
    _, ids = index.open().search(np.eye(WIDTH, dtype=np.float32) * 100, 10)
    return ids.tolist()


@pytest.fixture
def built(request, chunks, inputs, searched, tmp_path):
    """The artifact of one case, and its output."""
    stage, _, method = request.param.partition(": ")
    if stage == "documents" and method == "local files":
        (tmp_path / "corpus").mkdir()
        lines = [json.dumps({"id": f"{n}", "text": f"line {n} holds the words of document {n}"}) for n in range(30)]
        (tmp_path / "corpus" / "lines.jsonl").write_text("\n".join([*lines, "{broken"]), encoding="utf-8")
        artifact = chunks.artifacts.build(
            DocumentsStage(LocalSource(str(tmp_path / "corpus"), validation_fraction=0.2, max_bytes=None))
        )
        return Built(artifact, digest([artifact.facts, content(artifact)]))
    if stage == "embeddings":
        artifact = chunks.embeddings["train"].artifact
        vectors = np.concatenate([artifact.array(name) for name in sorted(artifact.manifest.files)])
        return Built(artifact, [*vectors[::7, ::5].ravel().tolist(), *artifact.facts.values()])
    if stage == "index":
        index = searched[method][0]
        facts = index.artifact.facts | {"bytes_per_vector": 0}
        return Built(index.artifact, digest([facts, found_by(index)]))
    if stage == "search":
        index, artifact = searched[method]
        output = [artifact.facts, artifact.array("00000/ids.npy").tolist()]
        if method == "refined":  # this few chunks have no candidates to spare, so how many there are is asked for
            opened = index.open()
            opened.set_parameters("k_factor_rf=32")
            output.append([opened._candidates_each(count) for count in (1, 5, 10, 40, 100, 1000)])
        return Built(artifact, digest(output))
    if stage == "oracle":
        artifact = chunks.artifacts.build(OracleStage(chunks.stores["validation"], STORED))
        return Built(artifact, digest([artifact.facts, artifact.array("ids.npy").tolist()]))
    if stage == "shuffled":
        store = chunks.stores["train"]
        neighbors = Neighbors(chunks.artifacts.build(NeighborsStage([searched["exact"][1]])))
        artifact = chunks.artifacts.build(ShuffledStage(store, store, neighbors, 0))
        return Built(artifact, digest([artifact.facts, artifact.array("ids.npy").tolist()]))
    if stage in ("random_part", "filtered"):
        store = chunks.stores["train"]
        neighbors = Neighbors(chunks.artifacts.build(NeighborsStage([searched["exact"][1]])))
        part: Stage = RandomPartStage(store, store, neighbors, 6, 0.4, Unit(method or "chunk"), 1)
        if stage == "filtered":
            part = FilteredStage(store, store, neighbors, 6, FILTER)
        artifact = chunks.artifacts.build(part)
        return Built(artifact, digest([artifact.facts, artifact.array("ids.npy").tolist()]))
    if stage == "neighbors":
        artifact = chunks.artifacts.build(NeighborsStage([searched["exact"][1], searched["exact"][1]]))
        return Built(artifact, digest([artifact.facts, content(artifact)]))
    if stage == "overlaps":
        store = chunks.stores["train"]
        neighbors = Neighbors(chunks.artifacts.build(NeighborsStage([searched["exact"][1]])))
        artifact = chunks.artifacts.build(OverlapsStage(store, store, neighbors))
        return Built(artifact, digest([artifact.facts, content(artifact)]))
    return Built(inputs[stage], digest([inputs[stage].facts, content(inputs[stage])]))


CASES = [
    *("documents", "documents: local files", "near_copies", "deduplication", "held_out", "decontamination"),
    *("tokenizer", "tokens", "embeddings"),
    *(f"index: {method}" for method in DENSE),
    *(f"search: {method}" for method in METHODS),
    "neighbors",
    "overlaps",
    "shuffled",
    "oracle",
    "random_part: chunk",
    "random_part: document",
    "filtered",
]


@pytest.mark.parametrize(("built", "case"), [(case, case) for case in CASES], indirect=["built"], ids=CASES)
def test_a_changed_output_has_another_version(built, case):
    recorded = json.loads(OUTPUTS.read_text(encoding="utf-8")) if OUTPUTS.is_file() else {}
    recipe = built.artifact.manifest.recipe
    versions = {stage.name: stage.version for stage in PIPELINE}
    before = dict(list(versions.items())[: list(versions).index(recipe["stage"])])
    made_by = {"version": recipe["version"], "before": before, "libraries": recipe["libraries"]}
    known = recorded.get(case, {})
    if made_by == {name: known.get(name) for name in made_by}:
        same = built.output == (pytest.approx(known["output"], abs=0.02) if case == "embeddings" else known["output"])
        assert same, f"what the stage {case} writes has changed: raise its `version`, then run with RECORD_OUTPUTS=1"
    elif os.environ.get("RECORD_OUTPUTS"):
        OUTPUTS.write_text(
            json.dumps(recorded | {case: made_by | {"output": built.output}}, indent=1, sort_keys=True) + "\n",
            encoding="utf-8",
        )
    elif (known.get("version"), known.get("before")) == (made_by["version"], before):
        pytest.skip(f"the outputs were recorded with other library versions: {known['libraries']}")
    else:
        pytest.fail(f"{case} or a stage before it has another version than recorded: run with RECORD_OUTPUTS=1")
