"""Access to a dataset of the Hugging Face hub, or a folder in the same layout: splits, shards, files and commit."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from huggingface_hub import errors

from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.corpus.documents import valid_unicode
from retro_lab.corpus.sources.compression import use_whole_streams
from retro_lab.corpus.sources.records import PARQUET_ROWS
from retro_lab.errors import CorpusError

HUB_TIMEOUT_SECONDS = 10
RAW = ".raw"


@dataclass(frozen=True, slots=True)
class HubSplit:
    """One split as a stream, with the name and the bytes on disk (0 if unknown) of each of its shards."""

    stream: datasets.IterableDataset
    shard_names: list[str]
    shard_sizes: list[int]


class HubDataset:
    """A dataset by name or folder, opened on first use and then kept open."""

    def __init__(
        self, name: str, subset: str | None, revision: str | None, data_files: Mapping[str, Any] | None
    ) -> None:
        """Name the dataset; nothing is read yet."""
        self.name = name
        self.subset = subset
        self.revision = revision
        self.data_files = None if data_files is None else {split: _plain(data_files[split]) for split in data_files}
        self.folder = Path(name).expanduser().resolve() if Path(name).expanduser().is_dir() else None
        self._splits: dict[str, HubSplit] = {}

    @property
    def commit(self) -> str | None:
        """Commit on the hub; the hub is not asked if `revision` is a commit, so that builds are found again offline.

        Raises:
            CorpusError: `revision` is not a commit, and the hub cannot be asked for one.
        """
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            return self.revision
        return self._info.sha

    def only(self, splits: Collection[str]) -> "HubDataset":
        """Return the same dataset with the files of some of its splits, where the user named files by split."""
        files = self.data_files
        if files is not None:
            files = {split: files[split] for split in files if split in splits}
        return HubDataset(self.name, self.subset, self.revision, files)

    @cached_property
    def checksums(self) -> dict[str, dict[str, Any]]:
        """Size and SHA-256 of every file of a folder, by name."""
        return self.checksums_of(self._files)

    def checksums_of(self, splits: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return size and SHA-256 of the files of some splits of a folder, by name; a missing split has none."""
        paths = [Path(path) for split in splits for path in self._files.get(split, ())]
        return {self._name(str(path)): {"size": path.stat().st_size, "sha256": file_checksum(path)} for path in paths}

    def split(self, name: str, option: str) -> HubSplit:
        """Open a split; `option` is the name of the setting that chose it, for messages.

        Raises:
            CorpusError: The hub cannot be reached, or there is no such dataset, subset, revision, file or split.
        """
        if name not in self._splits:
            self._splits[name] = self._open(name, option)
        return self._splits[name]

    def _open(self, name: str, option: str) -> HubSplit:
        if name not in self._files:
            close = difflib.get_close_matches(name, self._files, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(self._files) or 'none'}."
            raise CorpusError(f"{self.name} has no split {name!r}, which {option} names; {hint}")
        try:
            stream = self._builder.as_streaming_dataset(split=name)
        except Exception as error:  # every format's reader raises errors of its own types
            raise CorpusError(
                f"The split {name!r} of {self.name} cannot be read ({_first_line(error)}); check its files."
            ) from error
        paths = self._files[name]
        if len(paths) != stream.num_shards:  # archives: which shard belongs to which file is unknown
            return HubSplit(stream, [f"{name}-{n:05d}" for n in range(stream.num_shards)], [0] * stream.num_shards)
        return HubSplit(stream, [self._name(path) for path in paths], [self._size(path) for path in paths])

    @property
    def _files(self) -> dict[str, list[str]]:
        """Paths or addresses of the files by split."""
        return {str(split): list(files) for split, files in (self._builder.config.data_files or {}).items()}

    @cached_property
    def _builder(self) -> datasets.DatasetBuilder:
        use_whole_streams()
        revision = None if self.folder else self._info.sha
        try:
            if (files := self._raw_files) is not None:
                builder = datasets.load_dataset_builder("text", data_files=files, keep_linebreaks=True)
            else:
                builder = datasets.load_dataset_builder(
                    str(self.folder or self.name), self.subset, data_files=self.data_files, revision=revision
                )
        except Exception as error:  # datasets, fsspec and the hub's client raise errors of their own types
            raise CorpusError(
                f"The dataset {self.name} cannot be opened ({_first_line(error)}); "
                "check corpus.subset and corpus.data_files."
            ) from error
        if hasattr(builder.config, "batch_size"):  # Parquet: the default decodes a whole row group at once
            builder.config.batch_size = PARQUET_ROWS
        return builder

    @property
    def _raw_files(self) -> dict[str, list[str]] | None:
        """Paths by split of a folder's files if all of them are `.raw`, as WikiText's own files are; else None.

        They are lines of text, which `datasets` would take for sound.
        """
        files = {
            split: [found] if isinstance(found, str) else found for split, found in (self.data_files or {}).items()
        }
        if not self.folder or not files or not all(name.endswith(RAW) for names in files.values() for name in names):
            return None
        return {split: [str(self.folder / name) for name in names] for split, names in files.items()}

    @cached_property
    def _info(self) -> huggingface_hub.DatasetInfo:
        """What the hub knows about the dataset; asked first and with a timeout, as `datasets` retries for long."""
        try:
            return huggingface_hub.HfApi().dataset_info(
                self.name, revision=self.revision, timeout=HUB_TIMEOUT_SECONDS, files_metadata=True
            )
        except errors.RevisionNotFoundError as error:
            raise CorpusError(f"{self.name} has no revision {self.revision!r}; check corpus.revision.") from error
        except (errors.HFValidationError, errors.RepositoryNotFoundError) as error:
            raise CorpusError(
                f"There is no dataset {self.name!r} on the hub that you may read, and no such folder; "
                "check corpus.dataset, or log in with `hf auth login`."
            ) from error
        except Exception as error:  # the client passes on errors of its HTTP library
            offline = isinstance(error, errors.OfflineModeIsEnabled)
            reason = "HF_HUB_OFFLINE is set" if offline else _first_line(error)
            raise CorpusError(
                f"The Hugging Face hub cannot be reached for {self.name} ({reason}); "
                "connect to the network, or set corpus.dataset to a folder that holds a copy."
            ) from error

    @cached_property
    def _hub_sizes(self) -> dict[str, int]:
        return {file.rfilename: file.size or 0 for file in self._info.siblings or ()}

    def _size(self, path: str) -> int:
        return Path(path).stat().st_size if self.folder else self._hub_sizes.get(self._name(path), 0)

    def _name(self, path: str) -> str:
        """Return the name of a file within the dataset, the same on every machine."""
        if self.folder and Path(path).is_relative_to(self.folder):
            return valid_unicode(Path(path).relative_to(self.folder).as_posix())
        if path.startswith("hf://"):  # hf://datasets/NAME@COMMIT/FILE
            return path.partition("@")[2].partition("/")[2]
        return path.rpartition("/")[2]


def _plain(files: Any) -> str | list[str]:
    return files if isinstance(files, str) else [str(file) for file in files]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
