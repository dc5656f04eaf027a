"""Errors that tell a user, in one sentence, what was given and what to do instead.

The command line prints the sentence and exits with the error's code; everything else is a bug and keeps its traceback.
"""


class RetroLabError(Exception):
    """Base class of every error that a user can act on."""

    exit_code = 2


class ConfigurationError(RetroLabError, ValueError):
    """A configuration value, or a combination of values, that cannot work."""


class CorpusError(RetroLabError, ValueError):
    """Text that cannot be read, or that is too little to build from."""


class ArtifactError(RetroLabError):
    """An artifact on disk that is missing, damaged, or cannot be written."""


class ClusterError(RetroLabError):
    """A cluster that is not there, does not answer, or refuses a job."""


class RunInUseError(RetroLabError):
    """A run folder that another command is writing to, whose outcome is that command's to note down."""


class DivergenceError(RetroLabError, ArithmeticError):
    """A training of which loss, weights or scores are no longer finite: not a wrong command, but a failed run."""

    exit_code = 1


class PreemptedError(BaseException):
    """A command that a signal asked to stop: neither a failure nor something to catch and go on after.

    Like `KeyboardInterrupt` it is no `Exception`, so that no library takes it for a failure of its own.
    """

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: the same command goes on where this one stopped."""
