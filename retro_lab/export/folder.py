"""The folder of an exported model, written in one step.

config.json                  `RetroConfig`
generation_config.json       the marker that ends and pads texts
model.safetensors            weights; above a size, model-00001-of-N.safetensors with model.safetensors.index.json
tokenizer.json               with tokenizer_config.json
README.md                    the model card
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from retro_lab.artifacts.disk import sync
from retro_lab.errors import ArtifactError, ConfigurationError
from retro_lab.export.configuration import RetroConfig
from retro_lab.export.modeling import RetroForCausalLM
from retro_lab.export.tokenizer import pretrained_tokenizer
from retro_lab.runs.trained_model import TrainedModel

CONFIG_NAME = "config.json"
WRITTEN = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|model\.safetensors\.index)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|README\.md"
)


def exported_model(trained: TrainedModel, run: Mapping[str, str] | None = None) -> RetroForCausalLM:
    """Return a trained model as transformers knows it; both share their weights.

    Args:
        trained: Model, settings and tokenizer.
        run: Where it comes from, for its configuration.
    """
    marker = trained.tokenizer.document_marker
    settings, base = trained.settings, None
    if settings.backbone is not None:
        settings = replace(settings, backbone=replace(settings.backbone, model=settings.backbone.short_name))
        base = trained.model.base.config.to_dict()  # type: ignore[union-attr, operator]
        base.pop("_name_or_path", None)  # of this machine
    config = RetroConfig(
        settings=json.loads(json.dumps(asdict(settings))),
        base=base,
        run=None if run is None else dict(run),
        bos_token_id=marker,
        eos_token_id=marker,
        pad_token_id=marker,
    )
    with torch.device("meta"):
        model = RetroForCausalLM(config)
    model.model = trained.model
    return model.eval()


def check_target(target: Path, run: Mapping[str, str], overwrite: bool) -> None:
    """Refuse to replace what is not an export, or one of another run unless `overwrite` says so.

    Raises:
        ConfigurationError: `target` is such a folder, or a file.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigurationError(f"task.folder={target} is a file; name a folder.")
    others = sorted(path.name for path in target.iterdir() if path.is_dir() or not WRITTEN.fullmatch(path.name))
    if others:
        raise ConfigurationError(f"task.folder={target} holds {others[0]}, which no export wrote; name another folder.")
    if overwrite or not any(target.iterdir()):
        return
    try:
        found = json.loads((target / CONFIG_NAME).read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != dict(run):
        raise ConfigurationError(
            f"task.folder={target} holds another model; name another folder, or set task.overwrite=true."
        )


def write_export(
    target: Path, trained: TrainedModel, run: Mapping[str, str], card: str, *, shard_bytes: int, overwrite: bool = False
) -> None:
    """Write a folder that transformers loads.

    Args:
        target: Folder to write; whatever of an earlier export is there is replaced.
        trained: Model, settings and tokenizer.
        run: Where the model comes from; an export of the same is replaced without asking.
        card: Text of README.md.
        shard_bytes: Largest size of a file of weights.
        overwrite: Whether to replace an export of another model.

    Raises:
        ConfigurationError: `target` holds something else.
        ArtifactError: The folder cannot be written, or transformers cannot have the tokenizer.
    """
    check_target(target, run, overwrite)
    temporary, replaced = (target.with_name(f".{target.name}.{os.getpid()}.{state}") for state in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        model = exported_model(trained, run)
        model.save_pretrained(temporary, max_shard_size=shard_bytes)
        pretrained_tokenizer(trained.tokenizer, trained.settings.sequence_length).save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        if target.exists():
            target.rename(replaced)
        temporary.rename(target)
        sync(target.parent)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"Cannot write {target} ({error}); free space or choose another folder.") from error
    finally:
        _remove(temporary)
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        _remove(replaced)


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
