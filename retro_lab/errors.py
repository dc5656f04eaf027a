"""Errors that tell a user, in one sentence, what was given and what to do instead.

The command line prints the sentence and exits with code 2; everything else is a bug and keeps its traceback.
"""


class RetroLabError(Exception):
    """Base class of every error that a user can act on."""


class ConfigurationError(RetroLabError, ValueError):
    """A configuration value, or a combination of values, that cannot work."""


class CorpusError(RetroLabError, ValueError):
    """Text that cannot be read, or that is too little to build from."""


class ArtifactError(RetroLabError):
    """An artifact on disk that is missing, damaged, or cannot be written."""
