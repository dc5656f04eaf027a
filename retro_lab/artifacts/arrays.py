"""Arrays that are written through a memory map."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike


def create_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Create the `.npy` file `path`, of zeros, and return it as a memory map to write to.

    Its blocks are reserved at once: in a file with holes, the first write that finds the disk full would end the
    process with a bus error instead of an exception.

    Raises:
        OSError: The disk has no room for the whole array.
    """
    array: np.memmap = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
