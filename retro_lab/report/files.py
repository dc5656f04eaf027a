"""Files that are there whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

from retro_lab.errors import ArtifactError


def write_file(path: Path, content: bytes) -> Path:
    """Put `content` at `path` in one step, making its folder where needed, and return `path`.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"Cannot write {path} ({error.strerror}); free space or choose another folder.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path
