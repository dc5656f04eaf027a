"""Atomic writes, and plain names for what goes wrong on a disk."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from retro_lab.errors import ArtifactError

FULL, TOO_LARGE = "The disk is full", "The limit on the size of files (ulimit -f) is reached"
NO_ROOM = {errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EFBIG: TOO_LARGE}
NO_WRITING = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def no_room(error: OSError | RuntimeError) -> str | None:
    """Say that the disk or a limit is full, if that is what a library's error means; None for other errors."""
    if isinstance(error, OSError) and error.errno is not None:
        return NO_ROOM.get(error.errno)
    # FAISS raises a RuntimeError with the system's words; NumPy has its own words for an array that fits in part.
    text = str(error)
    if re.fullmatch(r"\d+ requested and \d+ written", text):
        return FULL
    return next((words for number, words in NO_ROOM.items() if os.strerror(number) in text), None)


def sync(path: Path) -> None:
    """Force a file or folder to the disk, so that after a crash no rename is there without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[IO[bytes]]:
    """Yield a file to write to; once it is written and forced to the disk, it replaces `path`.

    Args:
        path: File to replace; its folder must exist.
        temporary: Where to write in the meantime; by default a name beside `path` that no other process uses.

    Raises:
        OSError: The file cannot be written; `path` is unchanged.
    """
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_file(path: Path, content: bytes) -> Path:
    """Write `content` to `path` in one step, create its folder if necessary, and return `path`.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise ArtifactError(f"Cannot write {path} ({error.strerror}); free space or choose another folder.") from error
    return path
