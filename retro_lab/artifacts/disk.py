"""What a disk that cannot be written to is called, and how what was written is forced to it."""

import errno
import os
import re
from pathlib import Path

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
