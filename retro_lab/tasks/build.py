"""`task=build`: documents, tokenizer, tokens, embeddings, index and neighbors; each is reused where it is there."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hydra.utils import instantiate

from retro_lab import console
from retro_lab.artifacts.stage import Artifact
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.decontamination import DecontaminationStage, HeldOutStage
from retro_lab.corpus.documents import SPLITS, Split
from retro_lab.corpus.round_trip import check_round_trip
from retro_lab.corpus.stages import DocumentsStage, TokenizerStage, TokensStage
from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.database import Database
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks.config import RunConfig


@dataclass(frozen=True)
class Corpus:
    """Both splits as tokens."""

    name: str
    documents: Artifact
    stores: Mapping[Split, TokenStore]


@dataclass(frozen=True)
class HeldOutText:
    """A text that models are scored on: its name in `evaluation.datasets`, what it is in words, and its tokens."""

    name: str
    description: str
    store: TokenStore


def run(config: RunConfig, folder: RunFolder) -> None:
    """Build everything that training needs and say what there is."""
    corpus = build_corpus(config)
    database = build_database(config, corpus)
    for split, store in corpus.stores.items():
        console.output.print(
            f"{split}: {store.documents:,} documents, {store.artifact.facts['tokens']:,} tokens, "
            f"{store.chunks:,} chunks, "
            f"{database.neighbors_of(store).facts['with_neighbors']:.1%} of them with neighbors",
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


def build_corpus(config: RunConfig) -> Corpus:
    """Build documents, tokenizer and tokens.

    Raises:
        ConfigurationError: The tokenizer does not give the text of held-out documents back.
    """
    store = ArtifactStore(Path(config.paths.artifacts))
    documents = store.build(DocumentsStage(instantiate(config.corpus)))
    rejected = documents.facts["rejected"]
    if rejected:
        counts = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        console.status("documents", f"skipped {counts}; such as {documents.facts['rejected_examples'][0]}")
    if config.decontamination.similarity is not None:
        held_out = store.build(HeldOutStage(documents))
        documents = store.build(DecontaminationStage(documents, held_out, config.decontamination.similarity))
        if dropped := documents.facts["decontamination"]["dropped"]:
            example = documents.facts["decontamination"]["examples"][0]
            console.status(
                "decontamination",
                f"dropped {dropped['documents']:,} documents much like held-out ones; such as {example}",
            )
    recipe = instantiate(config.tokenizer)
    tokenizer = store.build(TokenizerStage(recipe, documents))
    stages = {
        split: TokensStage(documents, tokenizer, split, config.model.chunk_length, config.database.seed)
        for split in SPLITS
    }
    # The held-out documents come first: they tell whether the tokenizer can be used.
    validation = TokenStore(store.build(stages["validation"]), tokenizer)
    check_round_trip(validation, recipe.lossy)
    stores: dict[Split, TokenStore] = {
        "train": TokenStore(store.build(stages["train"]), tokenizer),
        "validation": validation,
    }
    return Corpus(config.corpus._target_.rpartition(".")[2], documents, stores)


def build_database(config: RunConfig, corpus: Corpus) -> Database:
    """Build the database, whose neighbors are then found as they are asked for.

    Raises:
        ConfigurationError: More neighbors are asked for than the database has chunks.
    """
    return Database(
        ArtifactStore(Path(config.paths.artifacts)),
        corpus.name,
        corpus.stores["train"],
        corpus.stores["validation"],
        config.database,
        config.retrieval,
        config.index,
        config.embedder,
        k=max(config.retrieval.k, *config.evaluation.k, 1),
    )


class Inputs:
    """What a run reads, each built once it is asked for: the corpus, the database, and the texts to score."""

    def __init__(self, config: RunConfig) -> None:
        """Build nothing yet."""
        self._config = config

    def build(self) -> None:
        """Build all of it now, so that nothing that can fail is left for after hours of training."""
        for text in self.texts:
            if self._config.retrieval.k:
                self.database.neighbors_of(text.store)

    @cached_property
    def corpus(self) -> Corpus:
        """What models are trained on."""
        return build_corpus(self._config)

    @cached_property
    def database(self) -> Database:
        """What they retrieve from."""
        return build_database(self._config, self.corpus)

    @cached_property
    def texts(self) -> tuple[HeldOutText, ...]:
        """What they are scored on, in the order of `evaluation.datasets`."""
        return tuple(
            HeldOutText(name, f"{name} split of {self.corpus.name}", self.corpus.stores[name])
            for name in dict.fromkeys(self._config.evaluation.datasets)
        )
