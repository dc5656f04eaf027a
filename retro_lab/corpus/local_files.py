"""Finding the user's files: what a path, a folder or a glob pattern means, and what format each file has."""

import difflib
import glob
from collections.abc import Iterator
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
    ".arrow": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Compression by suffix, named as in fsspec. Archives are none: fsspec reads the first file of a zip only."""
COMPRESSED_FORMATS = ("json", "text")
"""Formats read through a compression; Parquet and Arrow compress inside."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to read; `name` is relative to what the user named, so the same on every machine."""

    name: str
    path: Path
    format: str
    compression: str | None
    size: int

    def facts(self) -> dict[str, str | int]:
        """Size and SHA-256, which identify the content."""
        return {"size": self.size, "sha256": file_checksum(self.path)}


def checked_format(name: str | None) -> str | None:
    """Return the format that a user asked for, with `jsonl` as another name of `json`.

    Raises:
        CorpusError: There is no such format.
    """
    known = sorted({*FORMATS.values(), "jsonl"})
    if name is not None and name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}, or null."
        raise CorpusError(f"corpus.format={name} is not known; {hint}")
    return "json" if name == "jsonl" else name


def find_files(where: str, format_name: str | None, option: str) -> list[LocalFile]:
    """Return the files that `where` names, by name: a file, all files of a folder at any depth, or those of a glob.

    Of a folder, hidden files and files of unknown suffix are left out, and with `format_name` those of other formats.
    `option` is the name of the setting, for messages.

    Raises:
        CorpusError: There is nothing there, it is empty, or the format cannot be told or is not one.
    """
    root, found = _expand(where, option)
    if Path(where).expanduser().is_dir():
        found = [path for path in found if _suffix_format(path) in ({format_name} if format_name else FORMATS.values())]
        if not found:
            wanted = ", ".join(suffix for suffix, known in FORMATS.items() if format_name in (None, known))
            raise CorpusError(f"The folder {option}={where} holds no {wanted} file; name others by a glob pattern.")
    files = []
    for path in found:
        name = valid_unicode(path.relative_to(root).as_posix())
        known = format_name or _suffix_format(path)
        if known is None:
            raise CorpusError(f"The name {name} does not tell its format; set corpus.format to json, text or another.")
        compression = COMPRESSIONS.get(path.suffix.lower())
        if compression and known not in COMPRESSED_FORMATS:
            raise CorpusError(f"{name} is a compressed {known} file, which cannot be read; decompress it first.")
        files.append(LocalFile(name, path, known, compression, path.stat().st_size))
    formats = sorted({file.format for file in files})
    if len(formats) > 1:
        raise CorpusError(f"{option}={where} holds files of several formats ({', '.join(formats)}); set corpus.format.")
    if not any(file.size for file in files):
        raise CorpusError(f"{option}={where} holds nothing but empty files; name files with text in them.")
    return sorted(files, key=lambda file: file.name)


def _expand(where: str, option: str) -> tuple[Path, list[Path]]:
    """Return the folder that names are relative to, and the paths."""
    if not where:
        raise CorpusError(f"{option} is empty; give a file, a folder or a glob pattern.")
    path = Path(where).expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, list(_visible_files(path))
    if not glob.has_magic(str(path)):
        raise CorpusError(f"{option}={where} does not exist; give a file, a folder or a glob pattern.")
    found = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
    if not found:
        raise CorpusError(f"No file matches {option}={where}; check the pattern and the folder it starts from.")
    fixed = []
    for piece in path.parts:
        if glob.has_magic(piece):
            break
        fixed.append(piece)
    return Path(*fixed), found


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(piece.startswith(".") for piece in path.relative_to(folder).parts)
        if not hidden and path.is_file():
            yield path


def _suffix_format(path: Path) -> str | None:
    """Format that a file's suffix tells, behind the suffix of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None
