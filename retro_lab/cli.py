"""The command line: `python -m retro_lab` and `retro-lab`.

Hydra composes the configuration and calls the task. What is added here: help made from the files, errors of one
sentence with exit code 2, and sweeps in which one failed cell does not hide the others.
"""

import importlib
import os
import signal
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from retro_lab import console, preemption
from retro_lab.config.arguments import complete
from retro_lab.config.check import as_written, typed
from retro_lab.config.explain import CONFIGURATION_ERRORS, explain_failure
from retro_lab.config.help import group_help, help_text
from retro_lab.config.roots import config_root
from retro_lab.config.session import CONFIG_NAME, register
from retro_lab.errors import ConfigurationError, PreemptedError, RetroLabError, RunInUseError
from retro_lab.runs.command import remember_command
from retro_lab.runs.folder import RunFolder

USER_ERROR = 2
INTERRUPTED = 130
HELP_FLAGS = ("-h", "--help")
VERSION_FLAG = "--version"
CELL = "cell"
"""Command that `retro_lab.config.cells` starts for a cell of a sweep, with a file; not for users."""


def main() -> None:
    """Run the command line in `sys.argv`.

    Exit with 2 for an error of the user, with 130 if interrupted, and with 75 if a signal asked to stop.
    """
    console.quiet()
    # Idle threads that spin take the cores from those at work: five times slower on a machine that is shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Hydra would print its own errors and exit with 1; this has it raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _check_working_directory()
        if any(argument in HELP_FLAGS for argument in sys.argv[1:]):
            _print_help([argument for argument in sys.argv[1:] if not argument.startswith("-")])
            sys.stdout.flush()  # what cannot be written is found here, and not at the interpreter's end
            return
        if VERSION_FLAG in sys.argv[1:]:
            print(f"retro_lab {metadata.version('retro_lab')}")
            sys.stdout.flush()
            return
        register()
        if sys.argv[1:2] == [CELL]:
            from retro_lab.config import cells  # which loads torch, as a training does and other commands do not

            with preemption.handled(*_stopping_signals()):
                run_here(cells.read_cell(Path(sys.argv[2])))
            return
        remember_command()
        if sys.argv[1:2] == ["submit"]:
            importlib.import_module("retro_lab.cluster.submit").submit(sys.argv[2:])
            sys.stdout.flush()
            return
        if sys.argv[1:2] == ["status"]:
            code = importlib.import_module("retro_lab.cluster.status").status(sys.argv[2:])
            sys.stdout.flush()
            sys.exit(code)
        sys.argv[1:] = complete(sys.argv[1:])
        with preemption.handled(*_stopping_signals()):
            _hydra_main()
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        if console.is_main_process():
            console.messages.print(str(interrupt) or "Interrupted; run the same command again to resume.")
        sys.exit(INTERRUPTED)
    except PreemptedError as stop:
        if console.is_main_process():
            console.messages.print(str(stop), soft_wrap=True)
        sys.exit(stop.exit_code)
    except (RetroLabError, OSError, *CONFIGURATION_ERRORS) as error:
        sentence = explain_failure(error)
        if sentence is None:
            raise
        _fail(sentence, _exit_code(error))


@hydra.main(config_path=str(config_root("conf")), config_name=CONFIG_NAME, version_base="1.3")
def _hydra_main(config: DictConfig) -> None:
    # One line that calls an imported function: launchers pickle this one by value, with all that it refers to.
    importlib.import_module("retro_lab.cli").run_task(config)


def run_task(config: DictConfig) -> None:
    """Run the task; a cell of a sweep that has ranks of its own runs in a process of its own.

    Raises:
        SystemExit: The task raised an error that the user can fix, outside a sweep.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        from retro_lab.config import cells

        if cells.has_own_ranks(config):
            cells.run_apart(config)
            return
    run_here(config)


def run_here(config: DictConfig) -> None:
    """Call the task's `run(config, folder)`; in a sweep, note a failure down in the cell's folder and return.

    Raises:
        SystemExit: The task raised an error that the user can fix, outside a sweep.
    """
    console.quiet()  # again in processes that a launcher started
    hydra_config = HydraConfig.get()
    sweep = hydra_config.mode == RunMode.MULTIRUN
    folder = RunFolder(Path(hydra_config.runtime.output_dir), tuple(hydra_config.overrides.task), as_written(config))
    if sweep:
        folder.forget_failure()
    try:
        settings = typed(config)
        importlib.import_module(f"retro_lab.tasks.{settings.task.name}").run(settings, folder)
    except Exception as error:
        sentence = explain_failure(error)
        if sweep and isinstance(error, RunInUseError):
            console.error(str(error))
        elif sweep:
            folder.note_failure(sentence or traceback.format_exc())
            console.error(sentence or f"{type(error).__name__}: {error}")
        elif sentence:
            if console.is_main_process():
                folder.remove_unused()
            _fail(sentence, _exit_code(error))
        else:
            raise


def _stopping_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask to stop: a plain `kill`'s, and in a SLURM job those that a job may be told to get."""
    return preemption.SIGNALS if "SLURM_JOB_ID" in os.environ else (signal.SIGTERM,)


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigurationError("The working directory was removed; change to one that exists.") from error


def _print_help(words: list[str]) -> None:
    groups = [word for word in words if "=" not in word]
    print(group_help(groups[0]) if groups else help_text())


def _exit_code(error: Exception) -> int:
    return error.exit_code if isinstance(error, RetroLabError) else USER_ERROR


def _fail(sentence: str, exit_code: int) -> NoReturn:
    console.error(sentence)
    sys.exit(exit_code)
