"""The user's files: which files a path, a folder or a glob pattern names, and the format of each."""

import difflib
import errno
import fnmatch
import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.corpus.documents import valid_unicode
from retro_lab.errors import CorpusError

FORMATS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
    ".arrow": "arrow",
}
ABOUT = (".md", ".rst")
"""Suffixes of text that describes the data, if its folder has files of another format."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Compression by suffix, named as in fsspec. Archives are left out: fsspec reads only the first file of a zip."""
MISSING = "missing"
"""Stands for the format of a dangling link."""
COMPRESSED_FORMATS = ("json", "text")
"""Formats that may be compressed as a whole; Parquet and Arrow compress internally."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to read; `name` is relative to the user's path, so it is the same on every machine."""

    name: str
    path: Path
    format: str
    compression: str | None
    size: int
    cut: bool = False
    """Whether a text file is divided into documents at blank lines, instead of being one."""

    def facts(self) -> dict[str, str | int]:
        """Return size and SHA-256, which identify the content.

        Raises:
            CorpusError: The file cannot be read.
        """
        if self.format == MISSING:
            return {"size": 0, "sha256": ""}
        with readable(self.name):
            facts: dict[str, str | int] = {"size": self.size, "sha256": file_checksum(self.path)}
        return facts | ({"cut": self.cut} if self.cut else {})


def checked_format(name: str | None) -> str | None:
    """Return the format that the user named; `jsonl` is another name of `json`.

    Raises:
        CorpusError: The format is unknown.
    """
    known = sorted({*FORMATS.values(), "jsonl"})
    if name is not None and name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}, or null."
        raise CorpusError(f"corpus.format={name} is not known; {hint}")
    return "json" if name == "jsonl" else name


def find_files(where: str, format_name: str | None, option: str) -> list[LocalFile]:
    """Return the files that `where` names, by name: a file, all files of a folder at any depth, or those of a glob.

    Links are followed, and each file is returned once, under the name with the fewest links in it. Of a folder, hidden
    files and files of unknown suffix are left out; so are, with `format_name`, files of other formats and, without it,
    Markdown and reStructuredText beside files of another format than text. A dangling link is returned as a file of
    the format `MISSING`. `option` is the name of the setting, for messages.

    Raises:
        CorpusError: No file is found, all are empty, a part cannot be read, or formats are unknown or differ.
    """
    with readable(f"{option}={where}"):
        root, found = _expand(where, option)
        return _described(root, found, where, format_name, option)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn an error of the system into one that names what cannot be read, `name` if the system does not say.

    Raises:
        CorpusError: The system raised an error.
    """
    try:
        yield
    except OSError as error:
        # Only a whole path tells which of several folders it is.
        which = valid_unicode(str(error.filename or name))
        raise CorpusError(
            f"{which} cannot be read ({error.strerror or error}); make it readable, or leave it out of the corpus."
        ) from error


def _described(root: Path, found: list[Path], where: str, format_name: str | None, option: str) -> list[LocalFile]:
    """Make files of the paths `found` below `root`, by name."""
    missing = [path for path in found if not path.exists()]
    present = [path for path in found if path.exists()]
    if Path(where).expanduser().is_dir():
        wanted_formats = {format_name} if format_name else set(FORMATS.values())
        present = [path for path in present if _suffix_format(path) in wanted_formats]
        data = [path for path in present if _suffix(path) not in ABOUT]
        if {_suffix_format(path) for path in data} - {"text"} and format_name is None:
            present = data
        if not present:
            wanted = ", ".join(suffix for suffix, known in FORMATS.items() if format_name in (None, known))
            raise CorpusError(f"The folder {option}={where} holds no {wanted} file; name others by a glob pattern.")
    files = [LocalFile(_name(path, root), path, MISSING, None, 0) for path in missing]
    for path in present:
        name = _name(path, root)
        known = format_name or _suffix_format(path)
        if known is None:
            raise CorpusError(f"The name {name} does not tell its format; set corpus.format to json, text or another.")
        compression = COMPRESSIONS.get(path.suffix.lower())
        if compression and known not in COMPRESSED_FORMATS:
            raise CorpusError(f"{name} is a compressed {known} file, which cannot be read; decompress it first.")
        files.append(LocalFile(name, path, known, compression, path.stat().st_size))
    formats = sorted({file.format for file in files} - {MISSING})
    if len(formats) > 1:
        raise CorpusError(f"{option}={where} holds files of several formats ({', '.join(formats)}); set corpus.format.")
    if not any(file.size for file in files):
        raise CorpusError(f"{option}={where} contains only empty files; name files with text in them.")
    return sorted(files, key=lambda file: file.name)


def _name(path: Path, root: Path) -> str:
    return valid_unicode(path.relative_to(root).as_posix())


def _expand(where: str, option: str) -> tuple[Path, list[Path]]:
    """Return the folder that names are relative to, and the paths."""
    if not where:
        raise CorpusError(f"{option} is empty; give a file, a folder or a glob pattern.")
    path = Path(where).expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, _once(_matching(path, ["**"]), path)
    if not glob.has_magic(str(path)):
        raise CorpusError(f"{option}={where} does not exist; give a file, a folder or a glob pattern.")
    first = next(place for place, piece in enumerate(path.parts) if glob.has_magic(piece))
    root = Path(*path.parts[:first])
    found = _once(_matching(root, path.parts[first:]), root) if root.is_dir() else []
    if not found:
        raise CorpusError(f"No file matches {option}={where}; check the pattern and the folder it starts from.")
    return root, found


def _matching(folder: Path, pattern: Sequence[str], above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield the files and dangling links below `folder` whose path matches the pieces of a glob pattern.

    `glob` skips unreadable folders and dangling links, and follows a link to a folder that contains it, `above`, up to
    forty times.
    """
    own = folder.stat()
    here = above | {(own.st_dev, own.st_ino)}
    piece, *rest = pattern
    if piece == "**" and rest:
        yield from _matching(folder, rest, above)
    elif piece == "**":
        rest = ["**"]
        yield from _matching(folder, ["*"], above)
    with os.scandir(folder) as entries:
        paths = sorted(Path(entry.path) for entry in entries)
    for path in paths:
        if path.name.startswith(".") and not piece.startswith("."):
            continue
        if not fnmatch.fnmatch(path.name, "*" if piece == "**" else piece):
            continue
        state = _state(path)
        if state is None:
            if not rest:
                yield path
        elif stat.S_ISDIR(state.st_mode):
            if rest and (state.st_dev, state.st_ino) not in here:
                yield from _matching(path, pattern if piece == "**" else rest, here)
        elif stat.S_ISREG(state.st_mode) and not rest:
            yield path


def _state(path: Path) -> os.stat_result | None:
    """Return the state of the file behind `path`; None for a link to nothing or to itself."""
    try:
        return path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
            return None
        raise


def _once(paths: Iterable[Path], root: Path) -> list[Path]:
    """Leave out further names of a file that is among `paths` under a name with fewer links in it."""

    def links(path: Path) -> int:
        below = len(path.parts) - len(root.parts)
        return sum(place.is_symlink() for place in (path, *path.parents[: below - 1]))

    kept: dict[tuple[int, int] | Path, Path] = {}
    for count, path in sorted((links(path), path) for path in set(paths)):
        state = _state(path)
        identity = (state.st_dev, state.st_ino) if state else path
        if count == 0 or identity not in kept:  # names without links are files of their own
            kept[identity if identity not in kept else path] = path
    return list(kept.values())


def _suffix_format(path: Path) -> str | None:
    """Return the format of a file by its suffix."""
    return FORMATS.get(_suffix(path))


def _suffix(path: Path) -> str:
    """Return the last suffix of a file's name in lower case, without that of a compression; empty if there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
