"""`task=inspect`: print chunks beside the neighbors they retrieve."""

import numpy as np
import pyarrow.parquet as pq
from omegaconf import DictConfig
from rich.panel import Panel
from rich.text import Text

from retro_lab import console
from retro_lab.corpus.documents import SPLITS
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.neighbors import MISSING
from retro_lab.tasks.build import build_corpus, build_database
from retro_lab.tasks.ranges import check_values


def run(config: DictConfig) -> None:
    """Show chunks, what follows them, and their neighbors with distance, document and continuation.

    Raises:
        ConfigurationError: The split or the chunk does not exist.
    """
    check_values(config)
    split, chunk = config.task.split, config.task.chunk
    if split not in SPLITS:
        raise ConfigurationError(f"task.split={split} is none of {', '.join(SPLITS)}.")
    corpus = build_corpus(config)
    database = build_database(config, corpus)
    store, source = corpus.stores[split], corpus.stores["train"]
    if chunk is not None and not 0 <= chunk < store.chunks:
        raise ConfigurationError(f"task.chunk={chunk} is not one of the {store.chunks} chunks of the {split} split.")
    chunks = [chunk] if chunk is not None else np.linspace(0, store.chunks - 1, config.task.count + 2, dtype=int)[1:-1]
    table = database.neighbors[split]
    ids, distances = table.array("ids.npy"), table.array("distances.npy")
    for number in chunks:
        _show(store, int(number), f"{split} chunk {number}", "white")
        found = ids[number][: config.retrieval.k]
        if (found == MISSING).all():
            console.output.print("no neighbors")
        for rank, (neighbor, distance) in enumerate(zip(found, distances[number], strict=False), 1):
            if neighbor != MISSING:
                _show(source, int(neighbor), f"neighbor {rank}, distance {distance:.3f}, chunk {neighbor}", "cyan")


def _show(store: TokenStore, chunk: int, title: str, style: str) -> None:
    """Print one chunk and, dimmed, what follows it in its document."""
    where = np.array([chunk])
    document = pq.read_table(store.documents_table, columns=["id"])["id"][int(store.document_of(where)[0])].as_py()
    text, whole = store.texts(where)[0], store.texts(where, 2)[0]
    body = Text.assemble(console.visible(text), (console.visible(whole.removeprefix(text)), "dim"))
    console.output.print(
        Panel(body, title=Text(console.visible(f"{title}, {document}")), title_align="left", border_style=style)
    )
