"""Python source files of installed packages, a corpus that needs no download."""

import difflib
import fnmatch
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from retro_lab.corpus.documents import Document, DocumentSource, SourceSettings, Split, valid_unicode
from retro_lab.errors import ConfigurationError, CorpusError

FILES_IN_PART = 256


@dataclass(frozen=True, slots=True)
class _SourceFile:
    id: str
    package: str
    path: Path
    size: int
    sha256: str


class PythonSource(DocumentSource):
    """Files of installed packages, found without importing them; a document's id is `package/path/in/package.py`."""

    def __init__(
        self,
        packages: Sequence[str],
        include: Sequence[str] = ("**/*.py",),
        exclude: Sequence[str] = (),
        max_file_bytes: float = 1e6,
        **settings: Unpack[SourceSettings],
    ) -> None:
        """Read the files of `packages` that match `include` and not `exclude`, globs relative to each package.

        Files above `max_file_bytes` are left out, and so are all files with the same bytes but the first by name. With
        `max_bytes`, whole files are taken in a fixed pseudo-random order until the next one would exceed it.

        Raises:
            ConfigurationError: No package is named, or a name or a pattern is invalid.
        """
        super().__init__(**settings)
        if not packages:
            raise ConfigurationError("corpus.packages is empty; name at least one installed package.")
        if any("." in name for name in packages):  # finding a submodule would import what it is in
            raise ConfigurationError(
                f"corpus.packages={list(packages)} must be top-level import names; use corpus.include for a subpackage."
            )
        for pattern in (*include, *exclude):
            if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
                raise ConfigurationError(f"The pattern {pattern!r} must be a glob inside the package, without '..'")
        self.packages = sorted(set(packages))
        self.include = sorted(include)
        self.exclude = sorted(exclude)
        self.max_file_bytes = max_file_bytes

    def identity(self) -> dict[str, Any]:
        """Return what decides the splits, and the hash of every file, but not how the files were selected."""
        return {
            "kind": "python_source",
            "validation_fraction": self.validation_fraction,
            "test_fraction": self.test_fraction,
            "group_pattern": self.group_pattern,
            "files": {file.id: file.sha256 for file in self._selected()},
        }

    def parts(self) -> int:
        """Return the number of groups of files.

        Raises:
            CorpusError: A package is not installed, or no file is left to read.
        """
        return -(-len(self._selected()) // FILES_IN_PART)

    def read(self, part: int) -> Iterator[tuple[Split, Document]]:
        """Yield one group of files by name."""
        for file in self._selected()[part * FILES_IN_PART : (part + 1) * FILES_IN_PART]:
            # The text builder of `datasets` would fail on a whole group for one file that is not UTF-8: its Arrow
            # strings cannot hold the surrogates that mark such a file.
            text = file.path.read_bytes().decode("utf-8", "surrogateescape")
            document = Document(id=file.id, source=file.package, text=text)
            yield self._placed(document)

    def _selected(self) -> list[_SourceFile]:
        """Return the files to read, by name."""
        if self.max_bytes is None:
            return self._files
        selected: list[_SourceFile] = []
        left = self.max_bytes
        for file in sorted(self._files, key=lambda file: hashlib.blake2b(file.id.encode()).digest()):
            left -= file.size
            if left < 0:
                break
            selected.append(file)
        if not selected:
            raise CorpusError(f"corpus.max_bytes={self.max_bytes:g} is less than one file; raise it.")
        return sorted(selected, key=lambda file: file.id)

    @cached_property
    def _files(self) -> list[_SourceFile]:
        """All matching files by name, without duplicates."""
        by_content: dict[str, _SourceFile] = {}
        for name in self.packages:
            for relative, path in self._matching(name):
                size = path.stat().st_size
                if size <= self.max_file_bytes:
                    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                    by_content.setdefault(sha256, _SourceFile(relative, name, path, size, sha256))
        if not by_content:
            raise CorpusError(
                f"No file of {', '.join(self.packages)} matches corpus.include={self.include} "
                f"without corpus.exclude={self.exclude} and corpus.max_file_bytes={self.max_file_bytes:g}."
            )
        return sorted(by_content.values(), key=lambda file: file.id)

    def _matching(self, package: str) -> list[tuple[str, Path]]:
        """Return the ids and paths of a package's files that match the patterns, by id."""
        found: dict[str, Path] = {}
        for root in _locate(package):
            if root.is_file():  # a one-file module has no folder to search
                if _matches(root.name, self.include) and not _matches(root.name, self.exclude):
                    found[root.name] = root
                continue
            included = {path for pattern in self.include for path in root.glob(pattern)}
            excluded = {path for pattern in self.exclude for path in root.glob(pattern)}
            for path in included - excluded:
                if path.is_file():
                    found.setdefault(valid_unicode(f"{package}/{path.relative_to(root).as_posix()}"), path)
        return sorted(found.items())


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern.removeprefix("**/")) for pattern in patterns)


def _locate(package: str) -> list[Path]:
    """Return the folders of a package, or the file of a one-file module, without running their code."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module that was inserted into sys.modules has no spec
        spec = None
    if spec is not None and spec.submodule_search_locations is not None:
        return [Path(folder) for folder in spec.submodule_search_locations]
    if spec is not None and spec.has_location and spec.origin is not None and spec.origin.endswith(".py"):
        return [Path(spec.origin)]
    raise CorpusError(f"No Python source of a package {package!r} is installed; {_advice(package)}")


def _advice(package: str) -> str:
    distributions = importlib.metadata.packages_distributions()
    for import_name, names in sorted(distributions.items()):
        public = import_name.isidentifier() and not import_name.startswith("_")
        if public and package.lower().replace("-", "_") in (name.lower().replace("-", "_") for name in names):
            return f"its import name is {import_name!r}."
    close = difflib.get_close_matches(package, distributions, n=1)
    return f"did you mean {close[0]!r}?" if close else f"install it with `pip install {package}`."
