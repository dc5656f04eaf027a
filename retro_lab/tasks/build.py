"""`task=build`: documents, tokenizer, tokens, embeddings, index, neighbors and overlaps; existing ones are reused."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from retro_lab import console
from retro_lab.artifacts.config import BuildConfig, DispatcherName
from retro_lab.artifacts.dispatch import Dispatcher, Ranks
from retro_lab.artifacts.stage import Artifact
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.config import CorpusConfig, HubConfig, LocalConfig
from retro_lab.corpus.corpus import Corpus, build_corpus, build_other_corpus
from retro_lab.corpus.documents import SPLITS, DocumentSource, Split
from retro_lab.corpus.parquet import count_words
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.config import stride_of
from retro_lab.evaluation.hidden_states import Reader
from retro_lab.evaluation.knn_lm import Datastore
from retro_lab.retrieval.config import DatabaseConfig
from retro_lab.retrieval.database import Database, database_documents
from retro_lab.retrieval.filters import FilteredDatabase
from retro_lab.retrieval.overlaps import COPIED
from retro_lab.retrieval.random_databases import RandomDatabase
from retro_lab.retrieval.retriever import Retriever
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks.config import RunConfig


@dataclass(frozen=True, eq=False)
class HeldOutText:
    """A text that models are scored on."""

    name: str
    """As in `evaluation.datasets`."""
    description: str
    store: TokenStore
    documents: Artifact
    split: Split
    """Of `documents`, which has the tokens of `store`."""
    stride: int
    """Tokens from one window to the next."""
    counts_hits: bool
    """Whether its accuracy is measured."""
    line_ends_are_words: bool
    """Whether the perplexity per word counts the end of each line."""

    def words(self) -> int:
        """Count the words of the scored text, which is read for that."""
        return count_words(self.documents, self.split, self.line_ends_are_words)


@dataclass(frozen=True)
class ScoredRetrieval:
    """Neighbors that models are scored with besides those of the run's database (see `runs.records.Retrieved`)."""

    retriever: Retriever
    share: float = 1.0
    """Share of the run's database."""


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

    def __init__(self, config: RunConfig, artifacts: ArtifactStore | None = None) -> None:
        """Keep the configuration; nothing is built yet.

        Args:
            config: Of the run.
            artifacts: Where artifacts are; None builds them in `paths.artifacts`.

        Raises:
            ConfigurationError: `build.dispatcher` cannot be used here.
        """
        self._config = config
        self._artifacts = artifacts or ArtifactStore(Path(config.paths.artifacts), _dispatcher(config.build))

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
        for retrieval in self.other_retrievals:
            for text in self.texts:
                retrieval.retriever.overlaps_of(text.store)
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
        return self.corpus if other is None else self._training_split(other)

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
        return self._database(self.database_corpus, self._config.database, self._largest_k)

    @cached_property
    def other_retrievals(self) -> tuple[ScoredRetrieval, ...]:
        """What models are scored with besides the run's database: others, parts of it, and filters of its neighbors.

        Raises:
            ConfigurationError: More neighbors are wanted than a database has chunks.
        """
        config, evaluation, k = self._config, self._config.evaluation, self._config.retrieval.k
        if not k:
            return ()
        others = [self._database(self._training_split(name), config.database) for name in evaluation.databases]
        found = [ScoredRetrieval(database) for database in others]
        found += [ScoredRetrieval(self._first(share), share) for share in evaluation.fractions if share < 1]
        for share, seed in product(evaluation.keep, evaluation.keep_seeds):
            part = RandomDatabase(self._artifacts, self.database, share, seed, unit=evaluation.keep_unit, k=k)
            found.append(ScoredRetrieval(part, share))
        for name, chosen in evaluation.filters.items():
            found.append(ScoredRetrieval(FilteredDatabase(self._artifacts, self.database, name, chosen, k=k)))
        return tuple(found)

    def _first(self, share: float) -> Database:
        """Return the first documents of the run's database, in the shards that all of its parts need."""
        config, whole = self._config, self.database.fraction
        cuts = [*config.database.fractions, *(whole * share for share in config.evaluation.fractions)]
        part = replace(config.database, fraction=whole * share, tokens=None, fractions=cuts)
        return self._database(self.database_corpus, part)

    def _database(self, corpus: Corpus, config: DatabaseConfig, k: int | None = None) -> Database:
        """Return a database of a corpus, of whose neighbors `k` are read, by default those of `retrieval.k`."""
        # As many neighbors are stored as of the run's database, so that searches are shared.
        retrieval = replace(self._config.retrieval, stored=max(self._config.retrieval.stored, self._largest_k))
        return Database(
            self._artifacts,
            corpus.name,
            corpus.stores["train"],
            self.corpus.stores["validation"],
            config,
            retrieval,
            self._config.index,
            self._config.embedder,
            k=self._config.retrieval.k if k is None else k,
        )

    @property
    def _largest_k(self) -> int:
        return max(self._config.retrieval.k, *self._config.evaluation.k, 1)

    @cached_property
    def texts(self) -> tuple[HeldOutText, ...]:
        """The texts that models are scored on, in the order of `evaluation.datasets`."""
        return tuple(self._text(name) for name in dict.fromkeys(self._config.evaluation.datasets))

    def _text(self, name: str) -> HeldOutText:
        if name in SPLITS:
            return self._held_out(name, self.corpus, name, instantiate(self._config.corpus))
        base, _, part = name.partition("/")
        settings = self._config.corpora[base]
        if part:
            if not isinstance(settings, HubConfig):
                raise ConfigurationError(
                    f"evaluation.datasets names {name}, and the corpus {base} has no parts; name {base}."
                )
            settings = replace(settings, part=part)
        source: DocumentSource = instantiate(settings)
        other = self._build_other(_name(name, settings), source.to_score(), "test")
        return self._held_out(name, other, "test", source)

    def _held_out(self, name: str, corpus: Corpus, split: Split, source: DocumentSource) -> HeldOutText:
        config = self._config
        return HeldOutText(
            name=name,
            description=f"{split} split of {corpus.name}",
            store=corpus.stores[split],
            documents=corpus.documents,
            split=split,
            stride=stride_of(
                source.overlap, config.evaluation.stride, config.model.chunk_length, config.data.sequence_length
            ),
            counts_hits=source.counts_hits,
            line_ends_are_words=source.line_ends_are_words,
        )

    def _training_split(self, name: str) -> Corpus:
        settings = self._config.corpora[name]
        return self._build_other(_name(name, settings), instantiate(settings), "train")

    def _build_other(self, name: str, source: DocumentSource, split: Split) -> Corpus:
        return build_other_corpus(self._artifacts, source, self.corpus, name=name, splits=(split,), **self._settings)

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
