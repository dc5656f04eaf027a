"""The command line: `python -m retro_lab` and `retro-lab`.

Hydra composes the configuration and calls the task. What is added here: help made from the files, `+sweep=` meaning
multirun, one-sentence errors with exit code 2, and sweeps in which one failed cell does not hide the others.
"""

import importlib
import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.text import Text

from retro_lab import console
from retro_lab.artifacts.manifest import write_json
from retro_lab.config import compose, naming
from retro_lab.config.explain import explain, is_configuration_error
from retro_lab.config.help import help_text
from retro_lab.config.roots import config_root
from retro_lab.errors import RetroLabError

USER_ERROR = 2
INTERRUPTED = 130
FAILURE_NAME = "failed.json"
DEFAULT_ARGUMENTS = ("+experiment=quickstart",)
MULTIRUN_FLAGS = ("-m", "--multirun")


def main() -> None:
    """Run the command line in `sys.argv`; exits with 2 for what a user can mend and 130 when interrupted."""
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        print(help_text())
        return
    console.quiet()
    compose.register()
    # Hydra would print its own errors and exit with 1; this has it raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        sys.argv[1:] = expand_arguments(sys.argv[1:])
        _hydra_main()
    except KeyboardInterrupt:
        console.messages.print("Interrupted; the same command goes on from here.")
        sys.exit(INTERRUPTED)
    except RetroLabError as error:
        _fail(str(error))
    except Exception as error:
        if not is_configuration_error(error):
            raise
        _fail(explain(error))


@hydra.main(config_path=str(config_root("conf")), config_name=compose.CONFIG_NAME, version_base="1.3")
def _hydra_main(config: DictConfig) -> None:
    # One line that calls an imported function: launchers pickle this one by value, with all that it refers to.
    importlib.import_module("retro_lab.cli").run_task(config)


def run_task(config: DictConfig) -> None:
    """Call the task's `run(config)`; in a sweep, note a failure down in the cell's folder and return.

    Raises:
        SystemExit: The task raised an error that the user can mend, outside a sweep.
    """
    console.quiet()  # again in processes that a launcher started
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    failure = Path(HydraConfig.get().runtime.output_dir) / FAILURE_NAME
    try:
        importlib.import_module(f"retro_lab.tasks.{config.task.name}").run(config)
    except Exception as error:
        if not sweep:
            if not isinstance(error, RetroLabError):
                raise
            _fail(str(error))
        known = isinstance(error, RetroLabError)
        write_json(failure, {"error": str(error) if known else traceback.format_exc()})
        console.messages.print(Text(f"error: {error}", style="red"), soft_wrap=True)
    else:
        failure.unlink(missing_ok=True)


def expand_arguments(arguments: list[str]) -> list[str]:
    """Fill in what a user need not write: the quickstart for no arguments, and for a sweep multirun and its folder.

    Raises:
        HydraException: An override cannot be parsed.
    """
    if not arguments:
        return list(DEFAULT_ARGUMENTS)
    sweep = any(argument.startswith(("+sweep=", "sweep=")) for argument in arguments)
    chosen = any(argument in MULTIRUN_FLAGS or argument.startswith("hydra.mode=") for argument in arguments)
    inspects = any(argument in ("-c", "--cfg", "-i", "--info", "-sc", "--shell-completion") for argument in arguments)
    if inspects or not (sweep or chosen):
        return arguments
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    fixed = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    given = next((text.removeprefix("name=") for text in fixed if text.startswith("name=")), None)
    added = [] if chosen else ["hydra.mode=MULTIRUN"]
    if not any(text.startswith("hydra.sweep.dir=") for text in fixed):
        added.append("hydra.sweep.dir=${paths.outputs}/sweeps/" + _quoted(given or naming.slug(fixed)))
    return [*arguments, *added]


def _quoted(name: str) -> str:
    """Escape what has a meaning in Hydra's override grammar."""
    return "".join(f"\\{character}" if character in ",=:()[]{} " else character for character in name)


def _fail(sentence: str) -> None:
    console.messages.print(Text.assemble(("error: ", "bold red"), sentence), soft_wrap=True)
    sys.exit(USER_ERROR)


