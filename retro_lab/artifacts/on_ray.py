"""`build.dispatcher=ray`: actors build the shards, on this machine or on any that Ray runs on.

One actor for each GPU, or for each core, holds a stage and what it has prepared, such as a loaded encoder. It gets the
next shard when it is done with one, so a slow machine never has more than one. Actors do not come back by themselves:
Ray would keep a shard waiting for its own actor, for which there may be no machine any more. Here a shard of a lost
actor goes to whichever is free, and a new actor starts as soon as there is room for it.
"""

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retro_lab import console
from retro_lab.artifacts.dispatch import note_others
from retro_lab.artifacts.shards import POLL_SECONDS, Shards
from retro_lab.errors import ArtifactError, ClusterError, ConfigurationError

ATTEMPTS = 4
"""How many workers may be lost over one shard, or one after the other at their start."""
STORE_BYTES = 100_000_000
"""Memory of a local cluster's object store, which holds the description of a stage: Ray's own choice is 30% of all."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Variables that keep Ray from reporting on its users, and from a warning."""


class Worker:
    """What an actor does: it builds shards, of one stage after the other."""

    def __init__(self, folder: Path) -> None:
        """Work in `folder`, which paths of the configuration may be relative to.

        Raises:
            ClusterError: There is no such folder on this machine.
        """
        console.quiet()
        try:
            os.chdir(folder)
        except OSError as error:
            raise ClusterError(
                f"{os.uname().nodename} has no folder {folder} ({error.strerror}); run the command in one that all "
                "machines of the Ray cluster share."
            ) from error
        self._shards: Shards | None = None

    def ready(self) -> None:
        """Return as soon as the worker has started."""

    def build(self, folder: Path, stored: list[Any], shard: int) -> bool:
        """Build a shard and return True, or return False if another process holds it or has finished it.

        Args:
            folder: Of the artifact, which tells whether the stage is still the same.
            stored: A reference to `Shards` of the stage, in a list, as Ray would otherwise fetch it for every shard.
            shard: Its number.
        """
        import ray

        if self._shards is None or self._shards.folder != folder:
            self._free()
            shards: Shards = ray.get(stored[0])
            shards.stage.check_here()
            self._shards = shards
        return self._shards.build_if_free(shard, lambda count, note=None: None)

    def _free(self) -> None:
        """Free what the last stage has prepared."""
        if self._shards is not None:
            self._shards.__exit__(None, None, None)
            self._shards = None


class RayWorkers:
    """The actors, which are started when the first shard is to be built, and serve all stages until `close`."""

    def __init__(self, address: str, workers: int | None, cpus: int) -> None:
        """Start nothing yet.

        Args:
            address: Of the cluster; `local` starts one.
            workers: How many, None for as many as the cluster has room for.
            cpus: Cores of each.

        Raises:
            ConfigurationError: Ray is not installed.
        """
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ConfigurationError("build.dispatcher=ray needs Ray: pip install 'retro_lab[ray]'.") from error
        self._address = address
        self._workers = workers
        self._cpus = cpus
        self._started = False
        self._failed_starts = 0
        self._free: list[Any] = []
        self._starting: dict[Any, Any] = {}
        """Actors that have yet to say that they are ready, by the reference to that."""

    def build(self, shards: Shards, pending: Sequence[int], advance: console.Advance) -> None:
        """Have the workers build all shards; on other ranks than 0, wait for rank 0 to do so.

        Raises:
            ArtifactError: Workers were lost again and again.
            ClusterError: There is no cluster, or none that can start a worker.
            Exception: What a worker raised.
        """
        if not console.is_main_process():
            left = list(pending)
            while left:
                left = note_others(shards, left, None, advance)
            return
        self._start()
        import ray

        running: dict[Any, tuple[Any, int]] = {}
        try:
            self._build(shards, deque(pending), running, advance)
        finally:
            for worker, _ in running.values():  # after an error, nobody waits for what they build
                ray.kill(worker)

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        if self._started:
            import ray

            ray.shutdown()
        self._free, self._starting, self._started = [], {}, False

    def _start(self) -> None:
        """Start or find the cluster, once."""
        if self._started:
            return
        os.environ.update(QUIET)
        import ray

        local = self._address == "local"
        # Of a cluster that is there already, neither number can be chosen.
        own = {"object_store_memory": STORE_BYTES, "include_dashboard": False} if local else {}
        if local and self._workers is not None:
            own["num_cpus"] = self._workers * self._cpus
        try:
            with _same_signals():
                ray.init(address=self._address, log_to_driver=False, logging_level="ERROR", **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"build.ray_address={self._address} is no Ray cluster that answers ({_line(error)}); start one with "
                "`ray start --head`, or leave the address at local."
            ) from error
        self._started = True
        # Even with `log_to_driver=False`, a thread of Ray prints paragraphs about lost workers to standard output.
        ray._private.worker.print_to_stdstream = lambda *arguments, **options: None
        have = ray.cluster_resources()
        self._gpus = 1 if have.get("GPU", 0) >= 1 else 0
        room = int(have["GPU"]) if self._gpus else int(have.get("CPU", 0) // self._cpus)
        self._limit = self._workers or max(room, 1)
        on = f"{self._limit} GPUs" if self._gpus else f"{self._limit * self._cpus} cores"
        console.status("ray", f"{self._limit} workers on {on}, {'this machine' if local else self._address}")

    def _build(
        self, shards: Shards, queue: deque[int], running: dict[Any, tuple[Any, int]], advance: console.Advance
    ) -> None:
        """Build the shards in `queue`; `running` holds worker and shard of each task by its reference."""
        import ray

        stored = [ray.put(shards)]
        lost = Counter[int]()
        while queue or running:
            while queue and self._free:
                worker, shard = self._free.pop(), queue.popleft()
                running[worker.build.remote(shards.folder, stored, shard)] = worker, shard
            self._grow(len(queue), len(running))
            advance(0, "" if running else "waiting for room on the cluster")
            finished, _ = ray.wait([*running, *self._starting], num_returns=1, timeout=POLL_SECONDS)
            for reference in finished:
                if reference in self._starting:
                    self._note_start(reference)
                    continue
                worker, shard = running[reference]
                try:
                    built = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, Exception) else error) from None
                except ray.exceptions.RayError as error:
                    del running[reference]
                    lost[shard] += 1
                    if lost[shard] == ATTEMPTS:
                        raise ArtifactError(
                            f"{ATTEMPTS} workers were lost while they built shard {shard} of {shards.stage.name} "
                            f"({_line(error)}), the last one perhaps for want of memory; finished shards are kept: run "
                            "the same command again, with fewer build.workers."
                        ) from error
                    console.status("ray", f"a worker was lost; another one builds shard {shard} of {shards.stage.name}")
                    queue.append(shard)
                    continue
                del running[reference]
                self._free.append(worker)
                if built or not shards.pending([shard]):
                    advance(shards.sizes[shard])
                else:  # another command is building it, or its lock has yet to end with a lost machine
                    queue.append(shard)
                    time.sleep(POLL_SECONDS)

    def _grow(self, queued: int, running: int) -> None:
        """Start as many workers as there are shards for."""
        import ray

        wanted = min(self._limit - running - len(self._free), queued) - len(self._starting)
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "scheduling_strategy": "SPREAD", "max_restarts": 0}
        for _ in range(wanted):
            worker = ray.remote(Worker).options(**options).remote(Path.cwd())
            self._starting[worker.ready.remote()] = worker

    def _note_start(self, reference: Any) -> None:
        """Take a worker that has started, or count the failure."""
        import ray

        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts == ATTEMPTS:
                raise ClusterError(f"{ATTEMPTS} of Ray's workers in turn could not start: {_line(error)}") from error
        else:
            self._failed_starts = 0
            self._free.append(worker)


@contextmanager
def _same_signals() -> Iterator[None]:
    """Keep the handlers that are installed: Ray installs one that ends the process at SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _line(error: BaseException) -> str:
    """Return the last line of an error that is not empty: Ray's begin with where it happened."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
