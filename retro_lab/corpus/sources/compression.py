"""Reading compressed files completely, or not at all.

The usual readers stop silently where data end too soon (zstandard), after the first of several frames (zstandard as
fsspec uses it), or at a damaged second stream (bz2, lzma). These read to the last byte, and raise if an end is missing.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import fsspec.compression
import zstandard

INPUT_BYTES = 1024
"""Compressed bytes taken at a time: at most 32 MiB of text, as zstandard writes 128 KiB of one byte in four."""
LONGEST_WINDOW = 2**31
"""The window of `zstd --long=31`, the longest there is; reading a file takes as much memory as its own window."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS),
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=LONGEST_WINDOW).decompressobj(),
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}
"""One stream of each form, by the form's name in fsspec."""


class WholeStreams(io.RawIOBase):
    """The content of a compressed file: all of its streams, one after the other, with or without zeros in between."""

    def __init__(self, raw: Any, new: Callable[[], _Decompressor]) -> None:
        """Read the compressed bytes of `raw`, each stream with a decompressor that `new` makes."""
        self._raw = raw
        self._new = new
        self._decompressor = new()
        self._left = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes.

        Raises:
            EOFError: The compressed bytes end within a stream, or there are none.
        """
        while not self._ready:
            data, self._left = self._left or self._raw.read(INPUT_BYTES), b""
            if not data:
                if not self._decompressor.eof:
                    raise EOFError("its end is missing")
                return 0
            if self._decompressor.eof:
                data = data.lstrip(b"\0")
                if not data:
                    continue
                self._decompressor = self._new()
            self._ready = memoryview(self._decompressor.decompress(data))
            if self._decompressor.eof:
                self._left = self._decompressor.unused_data
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def use_whole_streams() -> None:
    """Have fsspec, and so `datasets`, read compressed files through `WholeStreams`; it writes as before."""
    for name, new in DECOMPRESSORS.items():
        before = fsspec.compression.compr[name]
        if not isinstance(before, _Opener):
            fsspec.compression.register_compression(name, _Opener(new, before), [], force=True)


class _Opener:
    def __init__(self, new: Callable[[], _Decompressor], otherwise: Callable[..., Any]) -> None:
        self._new = new
        self._otherwise = otherwise

    def __call__(self, infile: Any, mode: str = "rb", **options: Any) -> Any:
        if "r" in mode:
            return io.BufferedReader(WholeStreams(infile, self._new))
        return self._otherwise(infile, mode=mode, **options)
