"""The command as the user typed it, which `sys.argv` does not show in the cells of a sweep or the jobs of a cluster."""

import os
import shlex
import sys

VARIABLE = "RETRO_LAB_COMMAND"
"""Environment variable that passes the command on to the processes of a launcher."""


def remember_command() -> None:
    """Remember the current `sys.argv`."""
    os.environ[VARIABLE] = _in_words()


def typed_command() -> str:
    """Return the remembered command, or else that of this process."""
    return os.environ.get(VARIABLE) or _in_words()


def _in_words() -> str:
    return shlex.join(["python", "-m", "retro_lab", *sys.argv[1:]])
