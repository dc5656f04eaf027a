"""`task=export`: write a trained model of a run as a folder that transformers loads."""

import json
from pathlib import Path

from retro_lab import console
from retro_lab.artifacts.fingerprint import fingerprint
from retro_lab.errors import ArtifactError, RetroLabError
from retro_lab.runs.folder import BASELINE, RETRO, RunFolder
from retro_lab.runs.identity import IDENTITY_NAME
from retro_lab.runs.records import RESULT_NAME, load_result
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.task_config import ExportConfig

EXPORT_FOLDER = "export"


def run(config: RunConfig, folder: RunFolder) -> None:
    """Write the folder and print its path; only rank 0 does so.

    Raises:
        RetroLabError: The model is not trained; the message has the command to run.
        ConfigurationError: The target holds something else.
        ArtifactError: The model is damaged, or the folder cannot be written.
    """
    task = config.task
    assert isinstance(task, ExportConfig)
    if not console.is_main_process():
        return
    name = task.model or (RETRO if (folder.model(RETRO) / RESULT_NAME).is_file() else BASELINE)
    source = folder.model(name)
    if not (source / RESULT_NAME).is_file():
        folder.remove_empty()  # which Hydra made
        raise RetroLabError(f"{folder.path} holds no finished {name}; to train one: {folder.command}")
    record = load_result(source / RESULT_NAME)
    # Imported here, so that what is refused above need not wait for transformers.
    from retro_lab.export.card import model_card
    from retro_lab.export.folder import check_target, write_export
    from retro_lab.runs.trained_model import open_model

    target = Path(task.folder).expanduser() if task.folder else source / EXPORT_FOLDER
    origin = {"name": folder.path.resolve().name, "model": name, "identity": _identity(source)}
    check_target(target, origin, task.overwrite)
    trained = open_model(source, base=config.backbone.model)
    card = model_card(target.resolve().name if task.folder else origin["name"], record, trained.settings)
    write_export(target, trained, origin, card, shard_bytes=int(task.shard_bytes), overwrite=task.overwrite)
    console.status("exported", str(target))


def _identity(source: Path) -> str:
    """Return the fingerprint of everything that decided the model in a folder."""
    path = source / IDENTITY_NAME
    try:
        return fingerprint(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}); copy the run's folder again, or train it again."
        ) from error
