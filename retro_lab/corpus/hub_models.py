"""Models and tokenizers on the Hugging Face hub: the commit of a revision, online and offline."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from retro_lab.errors import ConfigurationError

HUB_TIMEOUT_SECONDS = 10
TOKENIZER_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
"""What a tokenizer is loaded from: vocabularies, merges, settings and templates, but no weights."""


def hub_commit(name: str, revision: str | None, group: str) -> str:
    """Return the commit of a model repository's `revision`, according to the hub or, offline, to the local cache.

    Args:
        name: Repository of a model or tokenizer.
        revision: Commit, tag or branch; None is the main branch. A commit is returned unchanged.
        group: Configuration group that names it, for messages.

    Raises:
        ConfigurationError: There is no such repository or revision, or the hub cannot be reached and nothing is cached.
    """
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        # The folder of the snapshot is named after the commit. Without any file to download, the client still records
        # the commit of the revision, which makes it known offline.
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=[], etag_timeout=HUB_TIMEOUT_SECONDS
            )
        ).name
    except errors.RevisionNotFoundError as error:
        raise ConfigurationError(f"{name} has no revision {revision!r}; check {group}.revision.") from error
    except (errors.HFValidationError, errors.RepositoryNotFoundError) as error:
        raise ConfigurationError(
            f"There is no {group} {name!r} on the hub that you may read, and no such file or folder; "
            f"check the name, or log in with `hf auth login`."
        ) from error
    except Exception as error:  # the client passes on errors of its HTTP library
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigurationError(
            f"The Hugging Face hub cannot be reached for the {group} {name} ({reason}), and it is not in the cache; "
            "connect to the network, or name a folder that holds a copy."
        ) from error


def tokenizer_folder(name: str, commit: str) -> Path:
    """Return the cached files of the tokenizer in a repository, downloaded if need be.

    Loaded by its name instead, even a cached tokenizer would wait for the hub: where that cannot be reached, for most
    of a minute.

    Args:
        name: Repository of a model or tokenizer.
        commit: The whole commit, as `hub_commit` returns it.

    Raises:
        Exception: Nothing is cached, and the client could not download it; it passes on errors of its HTTP library.
    """
    return Path(
        huggingface_hub.snapshot_download(
            name, revision=commit, allow_patterns=TOKENIZER_FILES, etag_timeout=HUB_TIMEOUT_SECONDS
        )
    )
