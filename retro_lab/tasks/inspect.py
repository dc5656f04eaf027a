"""`task=inspect`: chunks beside the neighbors they retrieve, and what a trained RETRO makes of their documents.

Chunks are printed whether or not anything is trained. If the run's folder holds a trained RETRO, the held-out documents
that the chunks are of are written as pages, token by token (`retro_lab.report.inspection`).
"""

from dataclasses import replace

import numpy as np
from rich.panel import Panel
from rich.text import Text

from retro_lab import console
from retro_lab.corpus.documents import HELD_OUT
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.inspected import InspectedDocument, inspected_document
from retro_lab.evaluation.token_nats import document_nats
from retro_lab.runs.examples import Example, Passage, evenly_spaced, examples
from retro_lab.runs.folder import RETRO, RunFolder
from retro_lab.runs.identity import check_scored
from retro_lab.runs.records import RESULT_NAME, load_result
from retro_lab.runs.trained_model import open_model
from retro_lab.tasks.assemble import build_trainer, model_identity, windows
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.checks import check_evaluation
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.task_config import InspectConfig

LONGEST = 500
"""Chunks of a document that its page shows at most: a browser takes about a second for as many."""


def run(config: RunConfig, folder: RunFolder) -> None:
    """Print chunks beside their neighbors, and write pages of their documents if a RETRO is trained.

    Raises:
        ArtifactError: The trained RETRO, or its record, is damaged.
        ConfigurationError: There is no such chunk or document, or the run's RETRO was trained with other settings.
    """
    task = config.task
    assert isinstance(task, InspectConfig)
    is_trained = (folder.path / RETRO / RESULT_NAME).is_file()
    if not is_trained and console.is_main_process():
        folder.remove_empty()  # which Hydra made
    with Inputs(config) as inputs:
        store = dict[str, TokenStore](inputs.corpus.stores.items())[task.split]
        chunks = _chosen(task, store)
        table, source = inputs.database.neighbors_of(store), inputs.database.source_of(store)
        for example in examples(store, source, table, chunks, config.retrieval.k):
            _show(example, task.split)
        if is_trained and task.split in HELD_OUT:
            _write_pages(config, folder, inputs, store, chunks, task.split)


def _chosen(task: InspectConfig, store: TokenStore) -> list[int]:
    """Return the chunks to show."""
    if task.chunk is not None:
        if not 0 <= task.chunk < store.chunks:
            raise ConfigurationError(
                f"task.chunk={task.chunk} is not one of the {store.chunks} chunks of the {task.split} split."
            )
        return [task.chunk]
    if task.document is None:
        return evenly_spaced(store.chunks, task.count)
    ids = store.document_ids(np.arange(store.documents))
    if task.document not in ids:
        raise ConfigurationError(
            f"task.document={task.document} is not one of the {store.documents} documents of the {task.split} split, "
            f"such as {ids[0]}."
        )
    first, end = store.document_start[ids.index(task.document) :][:2].tolist()
    return [first + chunk for chunk in evenly_spaced(end - first, task.count)]


def _show(example: Example, split: str) -> None:
    """Print a chunk and its neighbors, nearest first."""
    _print(example.passage, f"{split} chunk {example.passage.chunk}", "white")
    if not example.neighbors:
        console.output.print("no neighbors")
    for rank, found in enumerate(example.neighbors, 1):
        _print(found, f"neighbor {rank}, distance {found.distance:.3f}, chunk {found.chunk}", "cyan")


def _print(passage: Passage, title: str, style: str) -> None:
    """Print one chunk and, dimmed, its continuation in its document."""
    body = Text.assemble(passage.text, (passage.continuation, "dim"))
    title = f"{title}, {passage.document}"
    console.output.print(Panel(body, title=Text(title), title_align="left", border_style=style))


def _write_pages(
    config: RunConfig, folder: RunFolder, inputs: Inputs, store: TokenStore, chunks: list[int], split: str
) -> None:
    """Score the documents of `chunks` with and without neighbors, and write a page of each."""
    from retro_lab.report.build import write_run_report  # imported here, so that others do not wait for matplotlib
    from retro_lab.report.inspection import write_inspection

    path = folder.model(RETRO)
    record = load_result(path / RESULT_NAME)
    config = _on_one_device(config, record.k)
    check_evaluation(config)
    check_scored(path, model_identity(config, folder, inputs))
    database, k = inputs.database, record.k
    cut = windows(config, store, database, [0, k], float("inf"))
    retrieved, distances = database.retrieved_by(store, config.retrieval.value), database.neighbors_of(store).distances
    model = open_model(path, base=config.backbone.model).model
    documents: list[InspectedDocument] = []
    for document in np.unique(store.document_of(np.array(chunks))).tolist():
        trainer = build_trainer(config, path, steps=1, callbacks=())
        nats = document_nats(trainer, model, cut, document, [0, k])
        documents.append(inspected_document(store, retrieved, distances, document, nats[0], nats[k], k, LONGEST))
    for page in write_inspection(folder.path, record, split, database.description, documents):
        console.status("page", str(page))
    console.status("report", str(write_run_report(folder.path).page))  # which links to them


def _on_one_device(config: RunConfig, k: int) -> RunConfig:
    """Return the configuration that the run's RETRO scores a few documents with, in its own precision."""
    trainer = config.trainer | {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    return replace(config, retrieval=replace(config.retrieval, k=k), trainer=trainer)
