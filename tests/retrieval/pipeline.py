"""A small corpus taken through the real stages up to neighbors."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.decontamination import DecontaminationStage, HeldOutStage
from retro_lab.corpus.deduplication import DeduplicationStage
from retro_lab.corpus.documents import SPLITS, Document, DocumentSource
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.near_copies import NearCopiesStage
from retro_lab.corpus.tokenizer import ByteBPE
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage, TokenStore
from retro_lab.model.config import SizeConfig
from retro_lab.retrieval.bm25 import BM25
from retro_lab.retrieval.config import DatabaseConfig, EmbedderConfig, IndexConfig, RetrievalConfig
from retro_lab.retrieval.database import Database
from retro_lab.retrieval.embedder import Embedder
from retro_lab.retrieval.embeddings import Embeddings, EmbeddingsStage
from retro_lab.retrieval.index import Index, IndexStage
from retro_lab.retrieval.neighbors import Neighbors, NeighborsStage, Ranking, SearchStage
from retro_lab.retrieval.searchers import BM25Searcher, DenseSearcher

CHUNK_LENGTH = 8
SMALL_SIZE = SizeConfig(
    name="small", width=16, ffw_width=32, heads=2, head_size=8, layers=2, cca_layers=[1, 2], encoder_width=16,
    encoder_ffw_width=32, encoder_heads=2, encoder_head_size=8, encoder_layers=1,
)  # fmt: skip
"""Of a model that reads the corpus."""
WORDS = [
    "the",
    "frozen",
    "encoder",
    "embeds",
    "chunks",
    "and",
    "finds",
    "neighbors",
    "in",
    "a",
    "database",
    "of",
    "many",
    "tokens",
]


class RandomSentences(DocumentSource):
    """Documents of random words, of very different lengths; each is a group of its own unless `groups` are given."""

    def __init__(self, documents=24, longest=200, seed=0, groups=None):
        super().__init__(validation_fraction=0.125, test_fraction=0.125)
        self.documents, self.longest, self.seed, self.groups = documents, longest, seed, groups

    def identity(self):
        return {"documents": self.documents, "longest": self.longest, "seed": self.seed, "groups": self.groups}

    def parts(self):
        return 2

    def read(self, part):
        for number in range(part, self.documents, 2):
            draw = np.random.default_rng((self.seed, number))
            words = draw.choice(WORDS, draw.integers(3, self.longest))
            split = {3: "validation", 7: "test"}.get(number % 8, "train")
            group = f"group {number // 8 % self.groups}" if self.groups else ""
            yield split, Document(f"document {number}", "random", " ".join(words), group=group)


@dataclass
class Chunks:
    """What the stages made."""

    artifacts: ArtifactStore
    stores: dict
    embedder: Embedder
    embeddings: dict


def build_chunks(folder, bert, source=None, chunk_length=CHUNK_LENGTH, similarity=None):
    """Everything up to the embeddings; deduplicated and decontaminated where a similarity is given."""
    artifacts = ArtifactStore(folder)
    documents = artifacts.build(DocumentsStage(source or RandomSentences()))
    if similarity is not None:
        near_copies = artifacts.build(NearCopiesStage(documents, similarity))
        documents = artifacts.build(DeduplicationStage(documents, near_copies))
        held_out = artifacts.build(HeldOutStage(documents))
        documents = artifacts.build(DecontaminationStage(documents, held_out, similarity))
    tokenizer = artifacts.build(TokenizerStage(ByteBPE(300, 1e6), documents))
    stores = {
        split: TokenStore(artifacts.build(TokensStage(documents, tokenizer, split, chunk_length, 0)), tokenizer)
        for split in SPLITS
    }
    embedder = Embedder(str(bert), None, 64, 16, "float32", "cpu")
    embeddings = {split: Embeddings(artifacts.build(EmbeddingsStage(stores[split], embedder, 50))) for split in SPLITS}
    return Chunks(artifacts, stores, embedder, embeddings)


def index(chunks, start=0, stop=None, **settings):
    """An index over the training split's chunks, tuned and measured on the validation split's."""
    stop = chunks.stores["train"].chunks if stop is None else stop
    config = IndexConfig(**{"factory": "Flat"} | settings)
    stage = IndexStage(chunks.embeddings["train"], start, stop, config, chunks.embeddings["validation"], 100, 0)
    return Index(chunks.artifacts.build(stage))


def search(chunks, split, stored, cuts=(), method="dense", candidates=12, **settings):
    """Neighbors of a split's chunks in the training split, cut into database shards at `cuts`."""
    store = chunks.stores[split]
    bm25 = BM25(chunks.stores["train"], 1.5, 0.75)
    ranking = Ranking(candidates, bm25) if method == "hybrid" else None
    searches = []
    for start, stop in pairwise([0, *cuts, chunks.stores["train"].chunks]):
        if method == "bm25":
            searcher = BM25Searcher(store, bm25, start, stop)
        else:
            searcher = DenseSearcher(chunks.embeddings[split], index(chunks, start, stop, **settings))
        stage = SearchStage(searcher, store, chunks.stores["train"], stored, 40, ranking)
        searches.append(chunks.artifacts.build(stage))
    return Neighbors(chunks.artifacts.build(NeighborsStage(searches)))


def bm25_database(chunks, k):
    """Return a database of the chunks; BM25's scores do not depend on what else is searched for."""
    return Database(
        chunks.artifacts, "random", chunks.stores["train"], chunks.stores["test"], DatabaseConfig(),
        RetrievalConfig(method="bm25", stored=4), IndexConfig(), EmbedderConfig(model="there is none"), k=k,
    )  # fmt: skip
