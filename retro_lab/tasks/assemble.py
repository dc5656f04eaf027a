"""From configuration to the objects of a training or evaluation run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from lightning_fabric.plugins import TorchCheckpointIO
from omegaconf import DictConfig, OmegaConf

from retro_lab import console
from retro_lab.corpus.corpus import Corpus
from retro_lab.evaluation.windows import Windows
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel
from retro_lab.model.validation import check_model
from retro_lab.retrieval.sequences import Retrieved, Sequences
from retro_lab.tasks.build import Database
from retro_lab.training.checkpoints import DurableCheckpoints
from retro_lab.training.loggers import build_loggers


def model_settings(config: DictConfig, k: int) -> tuple[SizeConfig, ModelConfig]:
    """Return what a model with k neighbors is made from; without neighbors it has no layers for them.

    Raises:
        ConfigurationError: No model can be made from it.
    """
    size: Any = OmegaConf.to_object(config.size)
    model: Any = OmegaConf.to_object(config.model)
    assert isinstance(size, SizeConfig)
    assert isinstance(model, ModelConfig)
    if not k:
        size = replace(size, cca_layers=[])
    check_model(size, model, int(config.tokenizer.get("vocabulary_size", 1)))  # not all tokenizers know theirs yet
    return size, model


def build_model(config: DictConfig, k: int, corpus: Corpus) -> RetroModel:
    """Create the model; without neighbors it has no encoder and no chunked cross-attention."""
    return RetroModel(*model_settings(config, k), corpus.stores["train"].tokenizer.vocabulary_size)


def build_trainer(
    config: DictConfig, folder: Path, steps: int, callbacks: list[pl.Callback], logging: bool = True
) -> pl.Trainer:
    """Instantiate trainer, callbacks and loggers; a null `dirpath` or `save_dir` becomes the model's folder."""
    console.quiet()  # Lightning has set its loggers up anew when it was imported
    # Validation is counted in batches, of which an optimizer step takes several where gradients are accumulated.
    batches_per_step = config.trainer.get("accumulate_grad_batches") or 1
    interval = max(1, round(steps / max(1, config.evaluation.curve_points)))
    configured = [instantiate(node) for node in _in_folder(config.callbacks, folder)]
    loggers = build_loggers(_in_folder(config.logger, folder), folder) if logging else []
    trainer: pl.Trainer = instantiate(
        config.trainer,
        max_steps=steps,
        val_check_interval=interval * batches_per_step,
        check_val_every_n_epoch=None,
        gradient_clip_val=config.schedule.gradient_clip,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=[*configured, *callbacks],
        logger=loggers or False,
    )
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # and no plugin of the user's own
        trainer.strategy.checkpoint_io = DurableCheckpoints()
    return trainer


def _in_folder(nodes: DictConfig, folder: Path) -> list[Any]:
    """Return the entries of a group by name that are not null, with `folder` where they leave theirs open."""
    filled = {"dirpath": str(folder / "checkpoints"), "save_dir": str(folder)}
    return [
        OmegaConf.merge(node, {key: filled[key] for key in filled if key in node and node[key] is None})
        for node in (nodes or {}).values()
        if node
    ]


def sequences(config: DictConfig, split: Any, corpus: Corpus, database: Database | None) -> Sequences:
    """Read sequences of a split, with what they retrieve if there is a database."""
    retrieved = None
    if database is not None:
        ids = database.neighbors[split].array("ids.npy")
        retrieved = Retrieved(corpus.stores["train"], ids, config.retrieval.value)
    with_documents = config.model.document_masks
    return Sequences(corpus.stores[split], retrieved, config.data.sequence_length, with_documents=with_documents)


def windows(config: DictConfig, corpus: Corpus, database: Database | None, k: int, max_tokens: float) -> Windows:
    """Cut the held-out documents into evaluation windows."""
    held_out = sequences(config, "validation", corpus, database)
    return Windows(held_out, config.evaluation.stride, config.evaluation.batch_size, k, max_tokens)
