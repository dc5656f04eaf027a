"""Files that are there whole or not at all, and what a disk that cannot be written to is called."""

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
    """Say what there is no room for, from what the libraries that write files make of it; None for other errors."""
    if isinstance(error, OSError) and error.errno is not None:
        return NO_ROOM.get(error.errno)
    # FAISS raises a RuntimeError with the system's words; NumPy, for an array that fitted in part, one of its own.
    text = str(error)
    if re.fullmatch(r"\d+ requested and \d+ written", text):
        return FULL
    return next((words for number, words in NO_ROOM.items() if os.strerror(number) in text), None)


def sync(path: Path) -> None:
    """Force a file or folder to the disk, so that a rename never outruns its content when the machine goes down."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[IO[bytes]]:
    """Yield a file to write to, which is forced to the disk and takes the place of `path` once all is written.

    Args:
        path: Its folder is there.
        temporary: Where the file lies until then; by default a name beside `path` that no other process has.

    Raises:
        OSError: The file cannot be written; what was at `path` is still there.
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
    """Put `content` at `path` in one step, making its folder where needed, and return `path`.

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
