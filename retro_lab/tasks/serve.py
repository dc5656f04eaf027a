"""`task=serve`: a trained run and its database over HTTP: search, generation, and a page to try both.

The model and the index are loaded once. Only this machine can reach the server, unless `task.host` says otherwise.
"""

from dataclasses import fields, replace

import numpy as np

from retro_lab import console
from retro_lab.errors import ArtifactError, ConfigurationError
from retro_lab.generation.generator import Generator
from retro_lab.runs.folder import MODELS, RunFolder
from retro_lab.runs.identity import check_scored
from retro_lab.runs.trained_model import has_model, open_run
from retro_lab.serving.bodies import Limits
from retro_lab.serving.engine import Facts
from retro_lab.serving.run import ServedRun
from retro_lab.serving.worker import Worker
from retro_lab.tasks.assemble import build_trainer, model_identity
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.checks import check_evaluation
from retro_lab.tasks.config import RunConfig, ServeConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Serve a model of the run folder until a signal asks to stop; only rank 0 does so.

    Raises:
        ArtifactError: The run folder holds no such model.
        ConfigurationError: FastAPI or uvicorn is not installed, the address cannot be had, or the model was trained
            with other settings or data.
    """
    if not console.is_main_process():
        return
    task = config.task
    assert isinstance(task, ServeConfig)
    _check_libraries()
    from retro_lab.serving import server
    from retro_lab.serving.app import build_app

    check_evaluation(config)
    name = task.model or next((name for name in reversed(MODELS) if has_model(folder.path / name)), None)
    if name is None or not has_model(folder.path / name):
        raise ArtifactError(f"{folder.path} holds no trained {name or 'model'}; train one with: {folder.command}")
    taken = server.bound(task.host, task.port)
    with taken, Inputs(config) as inputs:
        served = _served(config, folder, name, inputs)
        limits = Limits(**{limit.name: getattr(task, limit.name) for limit in fields(Limits)})
        worker = Worker(served, limits.max_waiting)
        app = build_app(served, worker, limits, task.allowed_hosts)
        console.output.print(server.address(taken), soft_wrap=True)
        console.status("serving", f"{folder.path / name}; Ctrl-C stops it")
        try:
            server.answer(app, taken)
        finally:
            worker.close()
    console.status("serving", "stopped")


def _check_libraries() -> None:
    """Import what comes with the extra.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigurationError("task=serve needs the extra `serve`: pip install 'retro_lab[serve]'.") from error


def _served(config: RunConfig, folder: RunFolder, name: str, inputs: Inputs) -> ServedRun:
    """Open a model of the run and its database, and read the index."""
    path = folder.path / name
    trained = open_run(path)
    settings = trained.settings
    config = replace(config, retrieval=replace(config.retrieval, k=settings.k))
    check_scored(path, model_identity(config, folder, inputs))
    trainer = build_trainer(config, path, steps=1, callbacks=())
    precision = trainer.precision_plugin
    model = precision.convert_module(trained.model).to(trainer.strategy.root_device)
    assert isinstance(model, type(trained.model))
    live = inputs.database.live(settings.k) if settings.k else None
    if live is not None:
        live.search(list(live.store.read(np.arange(1))))  # so that the first client does not wait for the index

    def generator(k: int) -> Generator:
        return Generator(
            model,
            trained.tokenizer,
            live=live if k else None,
            value=settings.value,
            k=k,
            length=settings.sequence_length,
            batch_size=config.evaluation.batch_size,
            precision=precision.forward_context,
        )

    facts = Facts(
        run=folder.path.name,
        model=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        k=settings.k,
        chunk_length=settings.model.chunk_length,
        sequence_length=settings.sequence_length,
        vocabulary_size=settings.vocabulary_size,
        database=inputs.database.description if live is not None else None,
        corpus=inputs.database.name if live is not None else None,
        max_neighbors=min(live.stored, inputs.database.chunks) if live is not None else 0,
    )
    return ServedRun(facts, trained.tokenizer, live, generator)
