"""`task=build`: documents, tokenizer, tokens, embeddings, index, neighbors and overlaps; existing ones are reused."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from retro_lab import console
from retro_lab.artifacts.config import BuildConfig, DispatcherName
from retro_lab.artifacts.dispatch import Dispatcher, Ranks
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.config import CorpusConfig, LocalConfig
from retro_lab.corpus.corpus import Corpus, build_corpus, build_other_corpus
from retro_lab.corpus.documents import SPLITS, Split
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.hidden_states import Reader
from retro_lab.evaluation.knn_lm import Datastore
from retro_lab.retrieval.database import Database, database_documents
from retro_lab.retrieval.overlaps import COPIED
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks.config import RunConfig


@dataclass(frozen=True)
class HeldOutText:
    """A text that models are scored on: its name in `evaluation.datasets`, a description, and its tokens."""

    name: str
    description: str
    store: TokenStore


def run(config: RunConfig, folder: RunFolder) -> None:
    """Build everything that training and its evaluation need, and print a summary."""
    with Inputs(config) as inputs:
        inputs.build()
        _print_summary(inputs)


def _print_summary(inputs: "Inputs") -> None:
    database = inputs.database
    stores = dict[str, TokenStore](inputs.corpus.stores.items())
    stores |= {text.description: text.store for text in inputs.texts if text.name not in stores}
    for split, store in stores.items():
        copied = database.overlaps_of(store).facts.at_least[str(COPIED)]
        console.output.print(
            f"{split}: {store.documents:,} documents, {store.facts.tokens:,} tokens, "
            f"{store.chunks:,} chunks, "
            f"{database.neighbors_of(store).with_neighbors:.1%} of them with neighbors, "
            f"{copied:.1%} with at least {COPIED:.0%} of their text in one piece of a neighbor",
            soft_wrap=True,
        )
    for split, nearest in inputs.corpus.nearest.items():
        console.output.print(
            f"{split}: nearest training document: median similarity {nearest.median:.2f}, largest "
            f"{nearest.largest:.2f} ({nearest.document} like {nearest.like})",
            soft_wrap=True,
        )
    for index in database.indexes:
        facts = index.facts
        recalls = ", ".join(f"recall@{count} {share}" for count, share in index.recalls.items())
        console.output.print(
            f"index: {facts.factory}, {facts.vectors:,} vectors, {facts.bytes_per_vector} bytes each, {recalls}",
            soft_wrap=True,
        )


class Inputs:
    """The inputs of a run, each built on first use: the corpus, the database, and the texts to score.

    It is a context manager because what builds may be processes of its own.
    """

    def __init__(self, config: RunConfig) -> None:
        """Keep the configuration; nothing is built yet.

        Raises:
            ConfigurationError: `build.dispatcher` cannot be used here.
        """
        self._config = config
        self._artifacts = ArtifactStore(Path(config.paths.artifacts), _dispatcher(config.build))

    def __enter__(self) -> "Inputs":
        return self

    def __exit__(self, *error: object) -> None:
        """Free what the dispatcher started."""
        self._artifacts.dispatcher.close()

    def build(self) -> None:
        """Build everything now, so that no build can fail after hours of training, and free what it took."""
        stores = [*self.corpus.stores.values(), *(text.store for text in self.texts)]
        for store in stores if self._config.retrieval.k else ():
            self.database.overlaps_of(store)
        self._artifacts.dispatcher.close()

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus that models are trained on.

        Raises:
            ConfigurationError: The tokenizer does not reproduce the text of held-out documents.
            CorpusError: The corpus cannot be read, or a split has no documents.
        """
        return build_corpus(
            self._artifacts,
            instantiate(self._config.corpus),
            instantiate(self._config.tokenizer),
            name=_name(self._config.corpus_name, self._config.corpus),
            **self._settings,
        )

    @cached_property
    def database_corpus(self) -> Corpus:
        """The corpus whose training split, or a part of it, is the database."""
        other = self._config.database.corpus
        return self.corpus if other is None else self._build_other(other, "train")

    def datastore(self, reader: Reader) -> Datastore:
        """Return the kNN-LM datastore of a baseline: its hidden states for the tokens of the database.

        Raises:
            ConfigurationError: More neighbors are wanted than the database has tokens.
            DivergenceError: The states are not finite.
        """
        config, store = self._config, self.database_corpus.stores["train"]
        return Datastore(
            self._artifacts,
            reader,
            store,
            database_documents(config.database, store),
            self.corpus.stores["validation"],
            config.index,
            config.evaluation.knn_lm.k,
            config.database.seed,
        )

    @cached_property
    def database(self) -> Database:
        """The database that models retrieve from.

        Raises:
            ConfigurationError: More neighbors are wanted than the database has chunks.
        """
        config, corpus = self._config, self.database_corpus
        return Database(
            self._artifacts,
            corpus.name,
            corpus.stores["train"],
            self.corpus.stores["validation"],
            config.database,
            config.retrieval,
            config.index,
            config.embedder,
            k=max(config.retrieval.k, *config.evaluation.k, 1),
        )

    @cached_property
    def texts(self) -> tuple[HeldOutText, ...]:
        """The texts that models are scored on, in the order of `evaluation.datasets`."""
        return tuple(self._text(name) for name in dict.fromkeys(self._config.evaluation.datasets))

    def _text(self, name: str) -> HeldOutText:
        if name in SPLITS:
            return HeldOutText(name, f"{name} split of {self.corpus.name}", self.corpus.stores[name])
        other = self._build_other(name, "test")
        return HeldOutText(name, f"test split of {other.name}", other.stores["test"])

    def _build_other(self, name: str, split: Split) -> Corpus:
        source = self._config.corpora[name]
        return build_other_corpus(
            self._artifacts,
            instantiate(source),
            self.corpus,
            name=_name(name, source),
            splits=(split,),
            **self._settings,
        )

    @property
    def _settings(self) -> dict[str, Any]:
        """The settings that turn documents into tokens, the same for every corpus."""
        return {
            "deduplication": self._config.deduplication.similarity,
            "decontamination": self._config.decontamination.similarity,
            "chunk_length": self._config.model.chunk_length,
            "seed": self._config.database.seed,
        }


def _name(name: str, corpus: CorpusConfig) -> str:
    """Return a corpus's name in tables, with the file's name for a user's own files."""
    return f"{name} ({Path(corpus.path).name})" if isinstance(corpus, LocalConfig) else name


def _dispatcher(config: BuildConfig) -> Dispatcher:
    """Return who builds.

    Raises:
        ConfigurationError: Ray is not installed, or an array of jobs is wanted outside of one.
    """
    match config.dispatcher:
        case DispatcherName.ray:
            from retro_lab.artifacts.on_ray import RayWorkers

            return RayWorkers(config.ray_address, config.workers, config.ray_cpus)
        case DispatcherName.slurm if "SLURM_JOB_ID" not in os.environ:
            raise ConfigurationError(
                "build.dispatcher=slurm divides a build among jobs that `retro-lab submit task=build` submits; "
                "leave it at ranks to build here."
            )
    return Ranks()
