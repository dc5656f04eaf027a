"""`task=serve`: a trained run and its database over HTTP: search, generation, and a page to try both.

The model and the index are loaded once. Only this machine can reach the server, unless `task.host` says otherwise.
"""

from dataclasses import fields

import numpy as np

from retro_lab import console
from retro_lab.errors import ConfigurationError
from retro_lab.runs.folder import RunFolder
from retro_lab.serving.bodies import Limits
from retro_lab.serving.engine import Facts
from retro_lab.serving.run import ServedRun
from retro_lab.serving.worker import Worker
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.checks import check_evaluation
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.opened import OpenedModel, chosen_model, open_with_inputs
from retro_lab.tasks.task_config import ServeConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Serve a model of the run folder until a signal asks to stop; only rank 0 does so.

    Raises:
        ArtifactError: The run folder holds no such model.
        ConfigurationError: FastAPI or uvicorn is not installed, the address cannot be had, or the model cannot read the
            database.
    """
    if not console.is_main_process():
        return
    task = config.task
    assert isinstance(task, ServeConfig)
    _check_libraries()
    from retro_lab.serving import server
    from retro_lab.serving.app import build_app

    check_evaluation(config)
    path = chosen_model(folder, task.model)
    taken = server.bound(task.host, task.port)
    with taken, Inputs(config) as inputs:
        served = _served(open_with_inputs(config, path, inputs), folder)
        limits = Limits(**{limit.name: getattr(task, limit.name) for limit in fields(Limits)})
        worker = Worker(served, limits.max_waiting)
        app = build_app(served, worker, limits, task.allowed_hosts)
        console.output.print(server.address(taken), soft_wrap=True)
        console.status("serving", f"{path}; Ctrl-C stops it")
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


def _served(opened: OpenedModel, folder: RunFolder) -> ServedRun:
    """Open the database of a model, and read the index."""
    trained, settings = opened.trained, opened.trained.settings
    live = opened.live(settings.k) if settings.k else None
    if live is not None:
        live.search(list(live.store.read(np.arange(1))))  # so that the first client does not wait for the index
    facts = Facts(
        run=folder.path.name,
        model=trained.folder.name,
        parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        k=settings.k,
        chunk_length=settings.model.chunk_length,
        sequence_length=settings.sequence_length,
        vocabulary_size=settings.vocabulary_size,
        database=opened.database.description if live is not None else None,
        corpus=opened.database.name if live is not None else None,
        max_neighbors=min(live.stored, opened.database.chunks) if live is not None else 0,
    )
    return ServedRun(facts, trained.tokenizer, live, opened.generator)
