"""The command as its user typed it, which neither the cells of a sweep nor the jobs of a cluster see in `sys.argv`."""

import os
import shlex
import sys

VARIABLE = "RETRO_LAB_COMMAND"
"""Environment variable that hands the command on to processes that a launcher starts."""


def remember_command() -> None:
    """Keep `sys.argv` as it is now."""
    os.environ[VARIABLE] = _in_words()


def typed_command() -> str:
    """Return the command that was kept, or else that of this process."""
    return os.environ.get(VARIABLE) or _in_words()


def _in_words() -> str:
    return shlex.join(["python", "-m", "retro_lab", *sys.argv[1:]])
