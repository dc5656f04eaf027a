"""The queue in front of the model: one thread has the run to itself, and requests wait for it in their order.

Searches that wait are made together, which embeds them as one batch; a generation has its own turn. No request is lost:
each ends with an answer, with its own error, or with a refusal because too many are waiting.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from retro_lab.runs.search import Searched
from retro_lab.serving.engine import Engine, Wanted, Written
from retro_lab.serving.refusals import RefusedError

TOGETHER = 256
"""Texts of different requests that are searched for together."""
RETRY_SECONDS = 1
"""Seconds after which a client that was refused is told to try again."""
CLOSING_SECONDS = 5.0
"""Seconds that the end of the server waits for the thread."""


@dataclass(eq=False)
class _Job:
    """Work for the thread: a search if it has texts, or else whatever `work` does."""

    work: Callable[[], Any] = lambda: None
    texts: Sequence[str] = ()
    k: int = 0
    answer: Future[Any] = field(default_factory=Future)


class Worker:
    """Runs searches and generations of an engine one after the other; close it at the end."""

    def __init__(self, engine: Engine, most_waiting: int) -> None:
        """Start the thread.

        Args:
            engine: What is served.
            most_waiting: Requests that may wait for their turn.
        """
        self._engine, self._most_waiting = engine, most_waiting
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        # A daemon, so that a long generation does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def search(self, texts: Sequence[str], k: int) -> list[Searched]:
        """Return the k nearest neighbors of each text.

        Raises:
            RefusedError: Too many requests are waiting.
        """
        found: list[Searched] = await self._answer(_Job(texts=texts, k=k))
        return found

    async def generate(self, prompts: Sequence[str], wanted: Wanted) -> list[Written]:
        """Continue each prompt.

        Raises:
            RefusedError: Too many requests are waiting.
        """
        written: list[Written] = await self._answer(_Job(work=lambda: self._engine.generate(prompts, wanted)))
        return written

    def close(self) -> None:
        """Refuse what is waiting, and wait a moment for what is running."""
        with self._changed:
            self._closed = True
            waiting, self._jobs = list(self._jobs), deque()
            self._changed.notify()
        for job in waiting:
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(_stopping())
        self._thread.join(CLOSING_SECONDS)

    async def _answer(self, job: _Job) -> Any:
        with self._changed:
            if self._closed:
                raise _stopping()
            if len(self._jobs) >= self._most_waiting:
                raise RefusedError(
                    f"{len(self._jobs)} requests are waiting, which is the most (task.max_waiting); try again in "
                    f"{RETRY_SECONDS} s.",
                    503,
                    {"Retry-After": str(RETRY_SECONDS)},
                )
            self._jobs.append(job)
            self._changed.notify()
        return await asyncio.wrap_future(job.answer)

    def _run(self) -> None:
        while jobs := self._next():
            # A client may have gone in the meantime, and its request with it.
            jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if len(jobs) > 1:
                self._search_together(jobs)
            elif jobs:
                self._do(jobs[0])

    def _next(self) -> list[_Job]:
        """Wait for the job whose turn it is, with all searches that can be made together with it; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if self._closed:
                return []
            taken = [self._jobs.popleft()]
            if not taken[0].texts:
                return taken
            count = len(taken[0].texts)
            for job in [job for job in self._jobs if job.texts]:
                count += len(job.texts)
                if count > TOGETHER:
                    break
                taken.append(job)
                self._jobs.remove(job)
            return taken

    def _search_together(self, jobs: list[_Job]) -> None:
        try:
            found = self._engine.search([text for job in jobs for text in job.texts], max(job.k for job in jobs))
        except Exception:  # of one of them, which the others must not suffer for
            for job in jobs:
                self._do(job)
            return
        place = 0
        for job in jobs:
            own = found[place : place + len(job.texts)]
            place += len(job.texts)
            job.answer.set_result([Searched(chunks=each.chunks, neighbors=each.neighbors[: job.k]) for each in own])

    def _do(self, job: _Job) -> None:
        try:
            job.answer.set_result(self._engine.search(job.texts, job.k) if job.texts else job.work())
        except Exception as error:  # whatever it is, it is this request's own
            job.answer.set_exception(error)


def _stopping() -> RefusedError:
    return RefusedError("The server is stopping; send the request again once it has been started again.", 503)
