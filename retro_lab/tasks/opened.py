"""A trained model together with the database that it retrieves from: the one way to open both."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from retro_lab.errors import ArtifactError, ConfigurationError
from retro_lab.generation.generator import Generator
from retro_lab.generation.retrieved import Retrieve, searched
from retro_lab.retrieval.database import Database
from retro_lab.retrieval.live import LiveRetrieval
from retro_lab.runs.folder import MODELS, RunFolder
from retro_lab.runs.trained_model import TrainedModel, has_model, open_model
from retro_lab.tasks.assemble import build_trainer
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.config import RunConfig


@dataclass(eq=False)
class OpenedModel:
    """A model that writes and retrieves. The database is opened on first use: without neighbors there need be none."""

    trained: TrainedModel
    """With its model on the device that it runs on."""
    find_database: Callable[[], Database]
    """Opens the database."""
    batch_size: int
    """Texts that are written together."""
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Context of a forward pass."""
    _database: Database | None = field(default=None, init=False)
    _live: LiveRetrieval | None = field(default=None, init=False)

    @property
    def database(self) -> Database:
        """What the model retrieves from.

        Raises:
            ConfigurationError: Its chunks are not in tokens of the model, or not as long as the model's.
        """
        if self._database is None:
            database = self.find_database()
            self._check(database)
            self._database = database
        return self._database

    def live(self, k: int) -> LiveRetrieval:
        """Return the search for at least k neighbors, which keeps what it has read.

        Raises:
            ConfigurationError: `database` cannot be used, has fewer chunks than k, or holds neighbors of a control.
        """
        if self._live is None or self._live.stored < k:
            self._live = self.database.live(k)
        return self._live

    def retrieve(self, k: int) -> Retrieve:
        """Return what finds the k nearest neighbors of chunks, as the model reads them.

        Raises:
            ConfigurationError: There is no search for k neighbors.
        """
        return searched(self.live(k), k, self.trained.settings.value)

    def generator(self, k: int | None = None) -> Generator:
        """Return what writes texts.

        Args:
            k: Neighbors of each chunk, 0 for none; None takes as many as in training.

        Raises:
            ConfigurationError: There is no search for k neighbors, or the model reads none.
        """
        settings = self.trained.settings
        k = settings.k if k is None else k
        if k < 0:
            raise ConfigurationError(f"k must be 0 or more, not {k}.")
        return Generator(
            self.trained.model,
            self.trained.tokenizer,
            live=self.live(k) if k else None,
            value=settings.value,
            k=k,
            length=settings.sequence_length,
            batch_size=self.batch_size,
            precision=self.precision,
        )

    def _check(self, database: Database) -> None:
        store, m = database.store, self.trained.settings.model.chunk_length
        if store.tokenizer.checksum != self.trained.tokenizer.checksum:
            raise ConfigurationError(
                f"{self.trained.folder} has another tokenizer than its database, {database.name}; give the overrides "
                "that it was trained with."
            )
        if store.chunk_length != m:
            raise ConfigurationError(
                f"{self.trained.folder} has chunks of {m} tokens, and the database {database.name} chunks of "
                f"{store.chunk_length}; set model.chunk_length={m}."
            )


def chosen_model(folder: RunFolder, name: str | None) -> Path:
    """Return the folder of a run's model.

    Args:
        folder: Of the run.
        name: One of `MODELS`; None takes the RETRO, or a baseline if there is none.

    Raises:
        ArtifactError: The run has no such model.
    """
    name = name or next((name for name in reversed(MODELS) if has_model(folder.model(name))), None)
    if name is None or not has_model(folder.model(name)):
        raise ArtifactError(f"{folder.path} holds no trained {name or 'model'}; train one with: {folder.command}")
    return folder.model(name)


def open_with_inputs(config: RunConfig, model: Path, inputs: Inputs) -> OpenedModel:
    """Open a model as a task runs it: on the device and with the precision of `trainer`.

    Args:
        config: Of the task.
        model: Its folder.
        inputs: Of the task; what is missing of the database is built on its first use.

    Raises:
        ArtifactError: The model is missing or damaged.
        ConfigurationError: The trainer's settings cannot be used here.
    """
    trained = open_model(model, base=config.backbone.model)
    trainer = build_trainer(config, model, steps=1, callbacks=())
    precision = trainer.precision_plugin
    module: torch.nn.Module = precision.convert_module(trained.model).to(trainer.strategy.root_device)
    assert isinstance(module, type(trained.model))
    return OpenedModel(
        replace(trained, model=module),
        lambda: inputs.database,
        config.evaluation.batch_size,
        precision.forward_context,
    )
