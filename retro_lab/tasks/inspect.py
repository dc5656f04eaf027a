"""`task=inspect`: print chunks beside the neighbors they retrieve."""

import numpy as np
from rich.panel import Panel
from rich.text import Text

from retro_lab import console
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.neighbors import NO_NEIGHBOR
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.config import InspectConfig, RunConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Show chunks and their continuations beside their neighbors, with distance, document and continuation.

    Raises:
        ConfigurationError: There is no such chunk.
    """
    with Inputs(config) as inputs:
        _inspect(config, inputs)


def _inspect(config: RunConfig, inputs: Inputs) -> None:
    task = config.task
    assert isinstance(task, InspectConfig)
    split, chunk = task.split, task.chunk
    store = dict[str, TokenStore](inputs.corpus.stores.items())[split]
    if chunk is not None and not 0 <= chunk < store.chunks:
        raise ConfigurationError(f"task.chunk={chunk} is not one of the {store.chunks} chunks of the {split} split.")
    chunks = [chunk] if chunk is not None else np.linspace(0, store.chunks - 1, task.count + 2, dtype=int)[1:-1]
    table, source = inputs.database.neighbors_of(store), inputs.database.source_of(store)
    ids, distances = table.ids, table.distances
    for number in chunks:
        _show(store, int(number), f"{split} chunk {number}", "white")
        found = ids[number][: config.retrieval.k]
        if (found == NO_NEIGHBOR).all():
            console.output.print("no neighbors")
        for rank, (neighbor, distance) in enumerate(zip(found, distances[number], strict=False), 1):
            if neighbor != NO_NEIGHBOR:
                _show(source, int(neighbor), f"neighbor {rank}, distance {distance:.3f}, chunk {neighbor}", "cyan")


def _show(store: TokenStore, chunk: int, title: str, style: str) -> None:
    """Print one chunk and, dimmed, its continuation in its document."""
    where = np.array([chunk])
    document = store.document_ids(store.document_of(where))[0]
    text, whole = store.texts(where)[0], store.texts(where, 2)[0]
    body = Text.assemble(console.visible(text), (console.visible(whole.removeprefix(text)), "dim"))
    console.output.print(
        Panel(body, title=Text(console.visible(f"{title}, {document}")), title_align="left", border_style=style)
    )
