"""Manifests: the file, written last, that marks an artifact as complete and records the checksums of its files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retro_lab.artifacts.disk import replacing
from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.errors import ArtifactError

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 2
BYTES_READ_ON_OPENING = 16 * 2**20
"""Total size of the files whose checksums are compared each time an artifact is opened: 10 milliseconds of work."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """Measure the file at `path`."""
        return cls(path.stat().st_size, file_checksum(path))


@dataclass(frozen=True)
class Manifest:
    """What an artifact was made from (`recipe`), its files, and what its stage counted and measured (`facts`).

    The file has a checksum of its own, so that edits to the manifest itself are detected.
    """

    recipe: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, FileRecord]
    version: int = MANIFEST_VERSION

    def write(self, folder: Path, name: str = MANIFEST_NAME) -> None:
        """Write the manifest into `folder` in one step."""
        content = json.loads(_json_text(asdict(self)))  # as it will be read: with keys that are strings
        write_json(folder / name, content | {"sha256": _checksum(content)})

    @classmethod
    def read(cls, folder: Path, name: str = MANIFEST_NAME) -> "Manifest":
        """Read the manifest of the artifact in `folder`.

        Raises:
            ArtifactError: The manifest has another version of the format, or any of its bytes has changed.
        """
        path = folder / name
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text)
            if content["version"] != MANIFEST_VERSION:
                raise ArtifactError(
                    f"{path} has manifest version {content['version']} but this release reads version "
                    f"{MANIFEST_VERSION}; delete {folder} and build it again."
                )
            # Compare the text too: some changes, such as 1e-05 to 1E-05, do not change the content.
            if _json_text(content) != text or content.pop("sha256") != _checksum(content):
                raise ValueError("its checksum does not match")
            files = {name: FileRecord(**record) for name, record in content["files"].items()}
            return cls(content["recipe"], content["facts"], files)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} is not a manifest ({error}); delete {folder} and build it again.") from error

    def check_sizes(self, folder: Path) -> None:
        """Compare the size of every file with the manifest; cheap enough for every opening.

        Raises:
            ArtifactError: A file is missing or has another size.
        """
        for name, record in self.files.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != record.size:
                found = "is missing" if size is None else f"has {size} bytes"
                raise ArtifactError(
                    f"{path} {found} where its manifest says {record.size}; delete {folder} and build it again."
                )

    def check_small_files(self, folder: Path) -> None:
        """Compare the checksums of the smallest files, up to `BYTES_READ_ON_OPENING` of them, with the manifest.

        A flipped bit in a table of documents would change every score; one in the tokens, one of very many. Large files
        are checked by `damaged_files`, which `task=verify` calls.

        Raises:
            ArtifactError: A file's bytes differ from those that were written.
        """
        left = BYTES_READ_ON_OPENING
        for name, record in sorted(self.files.items(), key=lambda item: (item[1].size, item[0])):
            left -= record.size
            if left < 0:
                return
            if file_checksum(folder / name) != record.sha256:
                raise damaged(folder / name, "its bytes are not those that were written", folder)

    def damaged_files(self, folder: Path) -> list[str]:
        """Read every file, and return the names of those whose bytes differ from the manifest."""
        return [
            name
            for name, record in self.files.items()
            if not (folder / name).is_file() or FileRecord.of(folder / name) != record
        ]


def damaged(path: Path, reason: str, folder: Path | None = None) -> ArtifactError:
    """Return the error for a damaged file of the artifact in `folder`, by default the file's own folder."""
    return ArtifactError(
        f"{path} is damaged ({reason}); delete {folder or path.parent} and run the same command again, which builds "
        "it anew; task=verify tells what else is damaged."
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path` in one step, so that no reader sees half of it.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as file:
        file.write(_json_text(content).encode("utf-8"))


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json_text(content).encode("utf-8")).hexdigest()
