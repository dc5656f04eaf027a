"""Each document's share in a score: what intervals are made of, in a Parquet file beside the model's record."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_lab.artifacts.disk import write_file

COLUMNS = {"document": pa.int64(), "nats": pa.float64(), "tokens": pa.int64(), "bytes": pa.int64()}


@dataclass(frozen=True, eq=False)
class DocumentScores:
    """What a model takes for each document of a text, in the order of its token store; D documents."""

    nats: np.ndarray
    """float64 [D]: summed cross-entropy of the document's tokens."""
    tokens: np.ndarray
    """int64 [D]: tokens that were predicted."""
    bytes: np.ndarray
    """int64 [D]: UTF-8 bytes."""

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.nats)


def write_document_scores(path: Path, scores: DocumentScores) -> None:
    """Write `scores` to `path` so that they are there whole or not at all.

    Raises:
        ArtifactError: The file cannot be written.
    """
    columns = (np.arange(len(scores)), scores.nats, scores.tokens, scores.bytes)
    content = io.BytesIO()
    pq.write_table(pa.table([pa.array(column) for column in columns], schema=pa.schema(COLUMNS)), content)
    write_file(path, content.getvalue())


def load_document_scores(path: Path) -> DocumentScores:
    """Read the scores at `path`.

    Raises:
        ValueError: The file is not there, is cut short, or holds something else.
    """
    try:
        table = pq.read_table(path, schema=pa.schema(COLUMNS))
        document, nats, tokens, sizes = (column.to_numpy() for column in table.columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    if not np.array_equal(document, np.arange(len(document))):
        raise ValueError("its documents are not numbered from 0 on")
    return DocumentScores(nats=nats, tokens=tokens, bytes=sizes)
