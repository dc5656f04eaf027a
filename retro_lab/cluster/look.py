"""How the job of a run folder stands: what its files say, held against SLURM's queue.

A rank that is killed, a node that is lost and a canceled job leave no word of their own: a job that calls itself
running and is not in the queue has failed.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from retro_lab.cluster.files import JobFiles, Status, last_line
from retro_lab.runs.folder import PROGRESS_NAME

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT", "CONFIGURING")
"""States in SLURM's queue before a job runs."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a job stands."""

    status: Status
    job: str | None
    error: str | None = None


def standing(files: JobFiles, queue: Mapping[str, str] | None) -> Standing | None:
    """Return how a run's job stands; None if none was submitted.

    Args:
        files: Of the run.
        queue: Jobs that have not ended, by id; None if SLURM cannot be asked, so that only the files tell.
    """
    state, job = files.state, files.job
    if job is None:
        return None
    if state.status == "done":
        return Standing(status="done", job=job)
    if queue is not None and queue.get(job) in WAITING:  # whatever its last attempt came to
        return Standing(status="waiting", job=job)
    if state.status == "failed":
        return Standing(status="failed", job=job, error=last_line(state.error or ""))
    if queue is None:
        return Standing(status=state.status, job=job)
    if job in queue:
        asked_again = state.status == "waiting" and state.attempts  # and SLURM has not done so yet
        return Standing(status="waiting" if asked_again else "running", job=job)
    again = files.state  # it may have ended since
    if again != state:
        return standing(files, queue)
    words = files.last_words()
    lost = f"job {job} left the queue without a result"
    return Standing(status="failed", job=job, error=f"{lost}: {words}" if words else lost)


def progress(run: Path) -> str:
    """Return step and tokens per second of the model in training in a run folder; empty if there is none."""
    newest, when = "", 0.0
    for path in run.glob(f"*/{PROGRESS_NAME}"):
        with suppress(OSError, ValueError, KeyError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["time"] > when:
                when = content["time"]
                age = time.time() - when
                old = f", {age / 60:.0f} minutes ago" if age > 120 else ""
                newest = (
                    f"{path.parent.name}: step {content['step']:,} of {content['steps']:,}, "
                    f"{content['tokens_per_second']:,.0f} tokens/s{old}"
                )
    return newest
