"""The job itself: one process on its first node starts the ranks with `srun` and decides what comes after them.

    python -m retro_lab.cluster.job FOLDER            in the batch script
    python -m retro_lab.cluster.job FOLDER --rank     the processes that it starts

This process alone queues a job again: when its ranks saved their state because SLURM signaled them, or when a node was
lost under them. SLURM itself does so when the node of this process is lost. The number of times is limited.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from types import FrameType

from retro_lab import console, preemption, slurm
from retro_lab.cluster.files import JobFiles, JobState, last_line
from retro_lab.cluster.look import WAITING
from retro_lab.errors import ClusterError, PreemptedError, RetroLabError

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
"""SIGUSR2 comes before the time limit, SIGTERM when a job is preempted or canceled."""
NODE_SECONDS = 60
"""How long a node may take to answer."""


def main() -> None:
    """Run the job of the folder in `sys.argv`, or one of its ranks."""
    run = Path(sys.argv[1])
    sys.exit(run_rank(run) if sys.argv[2:] == ["--rank"] else supervise(run))


def supervise(run: Path) -> int:
    """Start the ranks, wait for them, and return the job's exit code.

    Args:
        run: Folder of a run that was submitted.
    """
    # The signals are for the ranks: their state is not yet saved when this process gets one.
    for number in SIGNALS:
        signal.signal(number, _ignore)
    files, job = JobFiles(run), slurm.job_id()
    before = files.state
    state = JobState(status="running", attempts=before.attempts + 1, job=job)
    files.forget_outcome()
    files.note_state(state)
    print(f"attempt {state.attempts} of job {job} on {os.environ['SLURM_JOB_NODELIST']}", flush=True)
    code = subprocess.run([*_srun(), sys.executable, "-u", "-m", __spec__.name, str(run), "--rank"]).returncode
    outcome = files.outcome
    match outcome.get("outcome"), code:
        case "done", _:
            files.note_state(replace(state, status="done"))
            return 0
        case "preempted", 0:  # another code means that srun ended the ranks, as one of them was killed
            return _again(files, state, "SLURM asked it to stop")
    error = outcome.get("error") or f"a process was killed (exit code {code}): {files.last_words()}"
    if not outcome.get("final") and not _nodes_answer():
        return _again(files, state, f"a node was lost ({last_line(error)})")
    return _fail(files, state, error, code or 1)


def run_rank(run: Path) -> int:
    """Run what was submitted, as one of the job's processes, and return the exit code."""
    files = JobFiles(run)
    main_process = console.is_main_process()
    try:
        with preemption.handled(*SIGNALS):
            _run_task(files)
    except PreemptedError as error:
        # Exit code 0, as `srun` kills the others at the first process that fails, and they may still be saving.
        if main_process:
            console.status("job", str(error))
            files.note_outcome("preempted")
        return 0
    except Exception as error:
        from retro_lab.config.explain import explain_failure

        sentence = explain_failure(error)
        if sentence is None:
            traceback.print_exc()
        else:
            console.error(sentence)
        files.note_outcome("failed", sentence or traceback.format_exc(), final=isinstance(error, RetroLabError))
        return 1
    if main_process:
        files.note_outcome("done")
    return 0


def _run_task(files: JobFiles) -> None:
    from retro_lab.config.check import as_written, typed
    from retro_lab.config.frozen import thaw
    from retro_lab.runs.command import VARIABLE
    from retro_lab.runs.folder import RunFolder

    console.quiet()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    submitted = files.submitted()
    if submitted is None:
        raise ClusterError(f"{files.run} was not submitted; run `retro-lab submit` with the run's overrides.")
    os.environ[VARIABLE] = submitted["command"]
    config = thaw(submitted["config"])
    overrides = tuple(submitted["config"]["hydra"]["overrides"]["task"])
    folder = RunFolder(files.run, overrides, as_written(config))
    if console.is_main_process():
        folder.forget_failure()
    settings = typed(config)
    importlib.import_module(f"retro_lab.tasks.{settings.task.name}").run(settings, folder)


def _again(files: JobFiles, state: JobState, reason: str) -> int:
    """Queue the job again, if it may be, and wait to be ended."""
    submitted = files.submitted() or {"requeues": 0}
    if state.attempts > submitted["requeues"]:
        return _fail(files, state, f"{reason}, and it was queued again {state.attempts - 1} times; submit it again.", 1)
    while (place := slurm.queue().get(str(state.job))) == "COMPLETING":  # SLURM is ending the job, and may kill this
        time.sleep(1)
    if place in WAITING:  # it found the lost node by itself
        files.note_state(replace(state, status="waiting"))
        return 0
    if place != "RUNNING":
        return _fail(files, state, f"canceled ({reason}); submit it again to go on.", 1)
    print(f"job {state.job} is queued again: {reason}", flush=True)
    files.note_state(replace(state, status="waiting"))
    try:
        slurm.requeue(str(state.job))
    except ClusterError as error:
        return _fail(files, state, f"{reason}, and it could not be queued again ({error}); submit it again.", 1)
    time.sleep(slurm.SECONDS)  # SLURM ends this process; if it returned, the job would count as complete
    return 0


def _fail(files: JobFiles, state: JobState, error: str, code: int) -> int:
    from retro_lab.runs.folder import RunFolder

    print(f"job {state.job} failed: {last_line(error)}", flush=True)
    files.note_state(replace(state, status="failed", error=error))
    submitted = files.submitted()
    if submitted and submitted["sweep"]:
        config = submitted["config"]
        RunFolder(files.run, tuple(config["hydra"]["overrides"]["task"]), config["settings"]).note_failure(error)
    return code


def _srun() -> list[str]:
    # From SLURM 22.05 on, srun does not take the cores of a process from sbatch.
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    return ["srun", "--kill-on-bad-exit=1", "--wait=0", *([f"--cpus-per-task={cores}"] if cores else [])]


def _nodes_answer() -> bool:
    """Start a program on every node of the job: a node that was lost may not be known to be for minutes."""
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if nodes == "1":
        return True
    command = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpus-per-task=1"]
    try:
        return subprocess.run([*command, "true"], timeout=NODE_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _ignore(number: int, frame: FrameType | None) -> None:
    """Take a signal without ending; programs started from here still get it as usual, unlike with SIG_IGN."""


if __name__ == "__main__":
    main()
