"""`task=build`: documents, tokenizer, tokens, embeddings, index and neighbors; each is reused where it stands."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from retro_lab import console
from retro_lab.artifacts.stage import Artifact
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.config.plain import plain
from retro_lab.corpus import corpus as corpora
from retro_lab.corpus.corpus import Corpus
from retro_lab.corpus.documents import SPLITS, Split
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError
from retro_lab.ranks import place
from retro_lab.retrieval.bm25 import BM25
from retro_lab.retrieval.config import IndexConfig
from retro_lab.retrieval.embedder import Embedder
from retro_lab.retrieval.embeddings import EmbeddingsStage
from retro_lab.retrieval.index import IndexStage
from retro_lab.retrieval.neighbors import NeighborsStage, Ranking, SearchStage
from retro_lab.retrieval.searchers import BM25Searcher, DenseSearcher
from retro_lab.tasks.ranges import check_values


@dataclass(frozen=True)
class Database:
    """The retrieval database and what each split retrieves from it."""

    chunks: int
    tokens: int
    fraction: float
    method: str
    """How neighbors were found: the FAISS factory string, BM25, or both."""
    indexes: tuple[Artifact, ...]
    neighbors: Mapping[Split, Artifact]


def run(config: DictConfig) -> None:
    """Build everything that training needs and say what there is."""
    check_values(config)
    corpus = build_corpus(config)
    database = build_database(config, corpus)
    for split, store in corpus.stores.items():
        console.output.print(
            f"{split}: {store.documents:,} documents, {store.artifact.facts['tokens']:,} tokens, "
            f"{store.chunks:,} chunks, "
            f"{database.neighbors[split].facts['with_neighbors']:.1%} of them with neighbors",
            soft_wrap=True,
        )
    for index in database.indexes:
        facts = index.facts
        recalls = ", ".join(f"{fact} {facts[fact]}" for fact in sorted(facts, key=len) if fact.startswith("recall@"))
        console.output.print(
            f"index: {facts['factory']}, {facts['vectors']:,} vectors, {facts['bytes_per_vector']} bytes each, "
            f"{recalls}",
            soft_wrap=True,
        )


def build_corpus(config: DictConfig) -> Corpus:
    """Build documents, tokenizer and tokens.

    Raises:
        ConfigurationError: The tokenizer does not give the text of held-out documents back.
    """
    return corpora.build_corpus(
        ArtifactStore(Path(config.paths.artifacts)),
        instantiate(config.corpus),
        instantiate(config.tokenizer),
        name=config.corpus._target_.rpartition(".")[2],
        similarity=config.decontamination.similarity,
        chunk_length=config.model.chunk_length,
        seed=config.database.seed,
    )


def build_database(config: DictConfig, corpus: Corpus) -> Database:
    """Find the neighbors of every chunk of each split among the training split's, by embeddings, tokens or both.

    Raises:
        ConfigurationError: More neighbors are asked for than the database has chunks.
    """
    retrieval = config.retrieval
    database_store = corpus.stores["train"]
    fraction, cuts = _cuts(config, database_store)
    wanted = max(retrieval.k, *config.evaluation.neighbors, 1)
    if wanted > cuts[-1]:
        raise ConfigurationError(
            f"retrieval.k={wanted} is more than the {cuts[-1]} chunks of the database; use a smaller k or a larger "
            "corpus or database.fraction."
        )

    stored = max(wanted, retrieval.stored)
    store = ArtifactStore(Path(config.paths.artifacts))
    bm25 = BM25(database_store, retrieval.bm25_k1, retrieval.bm25_b)
    ranking = Ranking(retrieval.candidates, bm25) if retrieval.method == "hybrid" else None
    embeddings = {} if retrieval.method == "bm25" else _embed(config, corpus, store)
    indexes = []
    searches: dict[Split, list[Artifact]] = {split: [] for split in SPLITS}
    for start, stop in zip([0, *cuts], cuts, strict=False):
        if embeddings:
            index = IndexConfig(**plain(config.index))
            seed = config.database.seed
            stage = IndexStage(embeddings["train"], start, stop, index, embeddings["validation"], stored, seed)
            indexes.append(store.build(stage))
        for split, tokens in corpus.stores.items():
            searcher = (
                DenseSearcher(embeddings[split], indexes[-1]) if embeddings else BM25Searcher(tokens, bm25, start, stop)
            )
            search = SearchStage(searcher, tokens, database_store, stored, config.index.query_batch, ranking)
            searches[split].append(store.build(search))
    neighbors = {split: store.build(NeighborsStage(found)) for split, found in searches.items()}
    # Every document's chunks are full but its last, so the tokens are counted from the documents themselves.
    documents = int(np.searchsorted(database_store.document_start, cuts[-1]))
    token_count = int(database_store.document_length[:documents].sum())
    factory = indexes[-1].facts["factory"] if indexes else ""
    method = {"dense": factory, "bm25": "BM25", "hybrid": f"{factory}, ranked by BM25"}[retrieval.method]
    return Database(cuts[-1], token_count, fraction, method, tuple(indexes), neighbors)


def _embed(config: DictConfig, corpus: Corpus, store: ArtifactStore) -> dict[Split, Artifact]:
    """Embed the chunks of each split."""
    device = f"cuda:{place().local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    settings = {
        name: config.embedder[name]
        for name in ("model", "revision", "max_length", "batch_size", "precision", "compile")
    }
    embedder = Embedder(**settings, device=device)
    return {
        split: store.build(EmbeddingsStage(tokens, embedder, config.embedder.shard_size))
        for split, tokens in corpus.stores.items()
    }


def _cuts(config: DictConfig, store: TokenStore) -> tuple[float, list[int]]:
    """Return the share of the training split in the database, and the chunks at which its shards end.

    Shards end between documents, so that a continuation lies in the database where its neighbor does.
    """
    fraction = config.database.fraction
    if config.database.tokens is not None:
        fraction = min(1.0, config.database.tokens / store.artifact.facts["tokens"])
    cuts = set()
    for share in {fraction, *(share for share in config.database.fractions if share < fraction)}:
        document = max(1, int(np.searchsorted(store.document_start, share * store.chunks)))
        cuts.add(int(store.document_start[min(document, store.documents)]))
    return fraction, sorted(cuts)
