"""`retro-lab submit`: runs the same command as jobs of a SLURM cluster, and returns at once.

A sweep becomes an array of jobs, one cell a task; so does a build with `build.dispatcher=slurm`, whose jobs share its
shards. What is submitted is frozen (`retro_lab.config.frozen`). The same
command again submits what failed or was never submitted, and nothing that is done, waiting or running.
"""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from retro_lab import console, slurm
from retro_lab.artifacts.config import DispatcherName
from retro_lab.cluster.files import JOB_FOLDER, JobFiles
from retro_lab.cluster.look import standing
from retro_lab.config.arguments import complete
from retro_lab.config.check import check, typed
from retro_lab.config.explain import explain_errors
from retro_lab.config.frozen import freeze
from retro_lab.config.session import session
from retro_lab.config.sweeps import axes, cell_folder, cells, fixed, varied_keys
from retro_lab.errors import ClusterError, ConfigurationError
from retro_lab.runs.command import typed_command
from retro_lab.runs.naming import slug
from retro_lab.runs.sweeps import by_key, write_plan
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.task_config import Task

DRY_RUN = "--dry-run"
LOCK_NAME = ".submit.lock"
SCRIPTS_FOLDER = ".jobs"
"""Folder of a sweep's scripts; sweeps do not look for cells in folders with a dot."""
ON_SEVERAL_DEVICES = (Task.build, Task.compare, Task.evaluate, Task.train)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to submit."""

    files: JobFiles
    config: RunConfig
    frozen: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command asks for."""

    jobs: tuple[Job, ...]
    array: Path | None
    """Folder of the folders of an array's jobs, None for a single job."""
    cells: Mapping[str, Mapping[str, str]]
    """Overrides of a sweep's cells by the names of their folders; empty if it is no sweep."""


def submit(arguments: Sequence[str]) -> None:
    """Submit what the overrides in `arguments` ask for, and say how to follow it.

    Args:
        arguments: Those of the ordinary command line, and `--dry-run` to print the scripts instead.

    Raises:
        ConfigurationError: The same as on the ordinary command line, or nothing that a job can be made of.
        ClusterError: There is no SLURM here, or it refuses.
    """
    overrides = [argument for argument in arguments if argument != DRY_RUN]
    plan = _plan(overrides)
    if DRY_RUN in arguments:
        for jobs in _alike(plan.jobs).values():
            for part in _parts(jobs, slurm.max_array_size() if slurm.available() else slurm.DEFAULT_MAX_ARRAY_SIZE):
                console.output.print(_script(part, plan.array), markup=False, highlight=False, soft_wrap=True)
        return
    if not slurm.available():
        raise ClusterError(
            "There is no sbatch on this machine, so nothing was submitted: run the command where SLURM is, or without "
            f"`submit` to run it here; {DRY_RUN} prints the scripts."
        )
    with _alone(Path(plan.jobs[0].config.paths.outputs)):
        _submit(plan)


def _submit(plan: Plan) -> None:
    queue = slurm.queue()
    new = []
    for job in plan.jobs:
        found = standing(job.files, queue)
        if found is not None and found.status in ("waiting", "running"):
            console.status(found.status, f"{job.files.run} as job {found.job}; not submitted again")
        elif found is not None and found.status == "done" and _same(job):
            console.status("done", f"{job.files.run}; not submitted again")
        else:
            if found is not None and found.status == "failed":
                console.status("failed", f"{job.files.run} as job {found.job}: {found.error}")
            new.append(job)
    if plan.array is not None and plan.cells and new:
        write_plan(plan.array, plan.cells)
    for job in new:
        content = {
            "command": typed_command(),
            "sweep": bool(plan.cells),
            "requeues": job.config.cluster.requeues,
            "config": dict(job.frozen),
        }
        job.files.submit(content)
    limit = slurm.max_array_size()
    for jobs in _alike(new).values():
        for part in _parts(jobs, limit):
            text = _script(part, plan.array)
            _keep(text, plan.array or part[0].files.folder)
            job_id = slurm.sbatch(text)
            for index, job in enumerate(part):
                own = job_id if plan.array is None else f"{job_id}_{index}"
                job.files.note_id(own)
                console.output.print(f"{own}  {job.files.run}", markup=False, highlight=False, soft_wrap=True)
    folder = plan.array or plan.jobs[0].files.run
    if not new:
        console.status("submitted", "nothing: there is nothing left to do")
        return
    where = plan.jobs[0].files.log if plan.array is None else Path(folder, "*", JOB_FOLDER, "output.log")
    console.status("submitted", f"{len(new)} job{'s' if len(new) > 1 else ''}; what they print is in {where}")
    console.status("follow", f"retro-lab status {shlex.quote(str(folder))}")


def _plan(arguments: Sequence[str]) -> Plan:
    """Compose and check every run that the arguments ask for.

    Raises:
        ConfigurationError: Something about them is wrong.
    """
    parsed = get_args_parser().parse_intermixed_args(list(arguments))
    flags = [argument for argument in arguments if argument.startswith("-") and argument not in ("-m", "--multirun")]
    if flags or parsed.shell_completion:
        raise ConfigurationError(f"submit takes overrides, -m and {DRY_RUN}, but not {flags[0]}.")
    overrides = [text for text in complete(arguments) if text not in ("-m", "--multirun")]
    sweep = "hydra.mode=MULTIRUN" in overrides
    with explain_errors(overrides), session() as assemble:
        base = assemble(fixed(overrides))
        if not sweep:
            return _divided(base) if _is_divided(base) else _single(base)
        varied = varied_keys(base, axes(overrides))
        jobs, planned = [], {}
        for cell in cells(base, overrides):
            config = assemble(cell)
            if _is_divided(config):
                raise ConfigurationError("build.dispatcher=slurm divides one build, and not those of a sweep.")
            folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)
            jobs.append(_job(config, folder))
            planned[cell_folder([text for text in cell if not text.startswith("hydra.")], varied)] = by_key(
                [text for text in cell if not text.startswith("hydra.")]
            )
        if not jobs:
            raise ConfigurationError("submit needs a grid of values; hydra/sweeper=basic is the sweeper that has one.")
        return Plan(jobs=tuple(jobs), array=Path(base.hydra.sweep.dir), cells=planned)


def _single(config: DictConfig) -> Plan:
    return Plan(jobs=(_job(config, _run_folder(config)),), array=None, cells={})


def _is_divided(config: DictConfig) -> bool:
    """Return whether a build is divided among the jobs of an array."""
    return bool(config.build.dispatcher == DispatcherName.slurm)


def _divided(config: DictConfig) -> Plan:
    """Plan a build as an array of equal jobs, each of which takes the next free shard, of stage after stage.

    An array for each stage would have to be submitted before the number of its shards is known, and would assign shards
    before it is known which node is slow. Equal jobs start whenever a node is free, and if one ends early the others
    build what it leaves.

    Raises:
        ConfigurationError: It is no build, or nobody says how many jobs.
    """
    settings = typed(config, resolve_all=False)
    if settings.task.name is not Task.build:
        raise ConfigurationError(
            f"build.dispatcher=slurm is for task=build, not for task={settings.task.name}: submit the build first."
        )
    if settings.build.workers is None:
        raise ConfigurationError("build.dispatcher=slurm needs the number of jobs: build.workers=8, for example.")
    folder = _run_folder(config)
    jobs = tuple(_job(config, folder / f"worker_{number:03}") for number in range(settings.build.workers))
    return Plan(jobs=jobs, array=folder, cells={})


def _job(config: DictConfig, folder: Path) -> Job:
    check(config)
    settings = typed(config, resolve_all=False)
    processes(settings)
    return Job(files=JobFiles(folder), config=settings, frozen=freeze(config, folder))


def _run_folder(config: DictConfig) -> Path:
    """Return the folder of a run; tasks without one get one for their job's files."""
    if config.task.name.has_run_folder:
        return Path(config.hydra.run.dir)
    name = config.name or slug(config.hydra.overrides.task)
    return Path(config.paths.outputs, f"{config.task.name}-{name}")


def processes(config: RunConfig) -> tuple[int, int, int | None]:
    """Return the nodes of a job, the processes on each, and the GPUs on each; None where the processor computes.

    Raises:
        ConfigurationError: `trainer.devices` or `trainer.num_nodes` is no number, which SLURM has to know beforehand.
    """
    if config.task.name not in ON_SEVERAL_DEVICES:
        return 1, 1, None
    devices, nodes = config.trainer.get("devices"), config.trainer.get("num_nodes", 1)
    count: Any = len(devices) if isinstance(devices, list) else devices
    numbers = {"devices": count, "num_nodes": nodes}
    for key, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"SLURM needs trainer.{key} as a number, for example 8; got {value}.")
    on_processor = config.trainer.get("accelerator") == "cpu"
    return int(nodes), int(count), None if on_processor else int(count)


def _options(job: Job) -> dict[str, object]:
    cluster = job.config.cluster
    nodes, tasks, gpus = processes(job.config)
    return {
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": gpus,
        "cpus-per-task": cluster.cpus_per_task,
        "mem": cluster.mem,
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "signal": f"USR2@{cluster.signal_seconds}",
        "requeue": True,
        "open-mode": "append",
        "output": "/dev/null",  # until the script has the run's own log
        "chdir": Path.cwd(),
    }


def _alike(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Group jobs by what they ask SLURM for: all tasks of an array get the same."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(repr((_options(job), job.config.cluster)), []).append(job)
    return groups


def _parts(jobs: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _script(jobs: Sequence[Job], array: Path | None) -> str:
    """Return the batch script of one job, or of an array."""
    first, cluster = jobs[0], jobs[0].config.cluster
    options = {"job-name": (array or first.files.run).name, **_options(first)}
    if array is not None:
        at_once = f"%{cluster.array_parallelism}" if cluster.array_parallelism else ""
        options["array"] = f"0-{len(jobs) - 1}{at_once}"
    folders = [shlex.quote(str(job.files.run)) for job in jobs]
    which = "${SLURM_ARRAY_TASK_ID:-0}"
    commands = [
        "folders=(", *(f"  {folder}" for folder in folders), ")",
        f"folder=${{folders[{which}]}}",
        f'exec >> "$folder/{JOB_FOLDER}/output.log" 2>&1',
        *cluster.setup,
        f'exec {shlex.quote(sys.executable)} -m retro_lab.cluster.job "$folder"',
    ]  # fmt: skip
    return slurm.script(options, cluster.options, commands)


def _keep(text: str, folder: Path) -> None:
    """Keep a script for those who want to know what was submitted."""
    folder = folder / SCRIPTS_FOLDER if folder.name != JOB_FOLDER else folder
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("script-*.sh")))
    (folder / f"script-{number}.sh").write_text(text, encoding="utf-8")


def _same(job: Job) -> bool:
    """Return whether what is done is what is asked for now: `evaluation`, say, may have changed in the same folder."""
    before = job.files.submitted() or {}
    old, new = (
        {key: value for key, value in content.get("settings", {}).items() if key not in ("build", "cluster")}
        for content in (before.get("config", {}), job.frozen)
    )
    return old == new


@contextmanager
def _alone(outputs: Path) -> Iterator[None]:
    """Keep two commands from submitting the same runs at the same time.

    Raises:
        ClusterError: Another command is submitting.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    lock = FileLock(outputs / LOCK_NAME)
    try:
        with lock.acquire(timeout=slurm.SECONDS):
            yield
    except Timeout as error:
        raise ClusterError(
            f"Another command is submitting into {outputs}; run this one again when it is done."
        ) from error
