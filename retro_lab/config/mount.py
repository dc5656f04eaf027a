"""Mounts the folders `experiments/` and `sweeps/` as the config groups `experiment` and `sweep`.

Hydra names a group after its folder inside a search path, so flat folders beside `conf/` need a `ConfigSource` of
their own. The address `mount://experiment=/path/to/experiments` is one folder under one group name.
"""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from yaml import MarkedYAMLError, YAMLError  # type: ignore[import-untyped]

from retro_lab.config.roots import GROUP_FOLDERS, config_files, group_folders
from retro_lab.config.schema import Schemas
from retro_lab.errors import ConfigurationError

HEADER_CHARACTERS = 512
"""Beginning of a file in which Hydra looks for `# @package`."""


class MountedFolder(ConfigSource):
    """One flat folder of YAML files under a group name of its own."""

    def __init__(self, provider: str, path: str) -> None:
        """Read the group and the folder from an address `mount://GROUP=FOLDER`."""
        super().__init__(provider=provider, path=path)
        self.group, _, folder = self.path.partition("=")
        self.folder = Path(folder)

    @staticmethod
    def scheme() -> str:
        """Return the scheme of the addresses that this class answers."""
        return "mount"

    def available(self) -> bool:
        """Tell whether the folder is there."""
        return self.folder.is_dir()

    def is_group(self, config_path: str) -> bool:
        """Tell whether a path is the root or the group."""
        return config_path in ("", self.group)

    def is_config(self, config_path: str) -> bool:
        """Tell whether a path is a file of the group."""
        return self._file(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List the group below the root, and the files below the group."""
        found: list[str] = []
        if config_path == "":
            names = [(self.group, self.group)]
        elif config_path == self.group:
            names = [(f"{self.group}/{path.stem}", f"{path.stem}.yaml") for path in config_files(self.folder)]
        else:
            names = []
        for path, name in names:
            self._list_add_result(files=found, file_path=path, file_name=name, results_filter=results_filter)
        return sorted(set(found))

    def load_config(self, config_path: str) -> ConfigResult:
        """Read one file. Its keys are those of the whole configuration, whether or not `# @package _global_` says so.

        Raises:
            ConfigLoadError: There is no such file.
            ConfigurationError: The file cannot be read, is not YAML, or not made of keys and values.
        """
        file = self._file(config_path)
        if file is None:
            raise ConfigLoadError(f"There is no {config_path} in {self.folder}.")
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{file} is not UTF-8 text; save it in UTF-8.") from error
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from error
        try:
            config = OmegaConf.load(file)
        except MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise ConfigurationError(f"{file}{line} is not YAML: {error.problem}.") from error
        except YAMLError as error:
            raise ConfigurationError(f"{file} is not YAML: it holds characters that YAML does not allow.") from error
        except OSError:  # what OmegaConf raises for a file that holds one value
            config = None
        if not isinstance(config, DictConfig):
            raise ConfigurationError(f"{file} is not made of lines KEY: VALUE.")
        header = self._get_header_dict(text[:HEADER_CHARACTERS])
        header["package"] = header["package"] or "_global_"
        return ConfigResult(provider=self.provider, path=f"mount://{file}", config=config, header=header)

    def _file(self, config_path: str) -> Path | None:
        group, _, name = config_path.rpartition("/")
        if group != self.group or not name:
            return None
        wanted = name.removesuffix(".yaml")
        return next((path for path in config_files(self.folder) if path.stem == wanted), None)


class RetroLabSearchPath(SearchPathPlugin):
    """Adds the mounted groups and the schemas to every composition."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the user's own folders, then the shipped ones, and the schemas that files name."""
        search_path.append("retro_lab", "schema://")
        for group in GROUP_FOLDERS:
            for folder in group_folders(group):
                search_path.append("retro_lab", f"mount://{group}={folder}")


def register() -> None:
    """Make the mounts known to Hydra; may be called again."""
    plugins = Plugins.instance()
    for plugin in (MountedFolder, Schemas, RetroLabSearchPath):
        if plugin not in plugins.discover():
            plugins.register(plugin)
