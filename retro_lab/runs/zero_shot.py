"""What `task=zero_shot` leaves in a run's folder: scores on the tasks of lm-eval.

zero_shot/results.json   every score, with its command and versions
zero_shot/results.csv    the same as a table
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from retro_lab.artifacts.disk import write_file
from retro_lab.errors import ArtifactError
from retro_lab.runs.records import Provenance

ZERO_SHOT_FOLDER = "zero_shot"
RESULTS_NAME, TABLE_NAME = "results.json", "results.csv"


@dataclass(frozen=True, kw_only=True)
class ZeroShotScore:
    """One metric of one task, for one model with one number of neighbors."""

    model: str
    """One of `retro_lab.runs.folder.MODELS`."""
    k: int
    """Neighbors of each chunk; 0 with retrieval off."""
    database: str | None
    """Where neighbors came from; None for k = 0."""
    task: str
    version: str | None
    """Of the task."""
    few_shot: int
    """Examples before each question."""
    samples: int
    """Questions."""
    metric: str
    filter: str
    """What lm-eval did with the answers before it measured: `none` if nothing."""
    value: float
    standard_error: float | None
    provenance: Provenance

    @property
    def measured(self) -> tuple[str | int | None, ...]:
        """What was measured; a later score of the same takes the place of an earlier one."""
        return (
            self.model, self.k, self.database, self.task, self.version, self.few_shot, self.samples, self.metric,
            self.filter,
        )  # fmt: skip


Scores = TypeAdapter(list[ZeroShotScore])


def load_zero_shot(folder: Path) -> list[ZeroShotScore]:
    """Read the scores in a run's folder; none if nothing was scored.

    Raises:
        ArtifactError: They are damaged.
    """
    path = folder / ZERO_SHOT_FOLDER / RESULTS_NAME
    if not path.is_file():
        return []
    try:
        return Scores.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{path} is damaged ({str(error).splitlines()[0]}); delete it and score again.") from error


def write_zero_shot(folder: Path, scores: Sequence[ZeroShotScore], table: str) -> None:
    """Write all scores of a run into its folder.

    Args:
        folder: Of the run.
        scores: All of them.
        table: The same as CSV.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    content = json.dumps([asdict(score) for score in scores], indent=1, ensure_ascii=False, allow_nan=False)
    write_file(folder / ZERO_SHOT_FOLDER / RESULTS_NAME, content.encode("utf-8"))
    write_file(folder / ZERO_SHOT_FOLDER / TABLE_NAME, table.encode("utf-8"))
