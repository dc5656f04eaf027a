"""Where the shipped configuration lies: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
GROUP_FOLDERS = {"experiment": "experiments", "sweep": "sweeps"}
"""Config groups that are mounted from folders of their own, and those folders."""


def config_root(folder: str) -> Path:
    """Return the shipped `conf`, `experiments` or `sweeps`."""
    packaged = PACKAGE / "_configs" / folder
    return packaged if packaged.is_dir() else PACKAGE.parent / folder


def group_folders(group: str) -> list[Path]:
    """Return the folders of a mounted group, the user's own (in the working directory) first."""
    folder = GROUP_FOLDERS[group]
    roots = dict.fromkeys([Path.cwd() / folder, config_root(folder)])
    return [root for root in roots if root.is_dir()]


def config_files(folder: Path) -> list[Path]:
    """Return the configuration files of a folder; of two with one name, the one that ends in `.yaml`."""
    files = {path.stem: path for ending in ("yml", "yaml") for path in sorted(folder.glob(f"*.{ending}"))}
    return sorted(files.values())
