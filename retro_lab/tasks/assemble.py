"""Builds the objects of a training or evaluation run from its configuration."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl
from hydra.utils import instantiate
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.loggers import Logger

from retro_lab import console
from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.corpus.tokens import TokenStore
from retro_lab.cost.parameters import Parameters
from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.windows import Windows
from retro_lab.model.config import SizeConfig
from retro_lab.model.validation import check_model
from retro_lab.retrieval.retriever import Retriever
from retro_lab.retrieval.sequences import Sequences
from retro_lab.runs.folder import BASELINE, RunFolder
from retro_lab.runs.identity import identity
from retro_lab.runs.trained_model import BackboneSettings, ModelSettings, has_model, weights_checksum
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.config import RunConfig
from retro_lab.training.checkpoints import CHECKPOINT, DurableCheckpoints, sealed_file
from retro_lab.training.config import Backbone, Init
from retro_lab.training.divergence import DivergenceGuard
from retro_lab.training.precision import checked_precision
from retro_lab.training.progress import LongTrainingNotice, ProgressFile
from retro_lab.training.schedule import WarmupCosine
from retro_lab.training.speed import TrainingSpeed
from retro_lab.training.stopping import ResumeAtStep, StopWhenAsked, leave_signals_to_us
from retro_lab.training.training import TrainingClock, ValidationCurve

if TYPE_CHECKING:
    from retro_lab.runs.base_model import BaseModel


def without_retrieval(config: RunConfig) -> RunConfig:
    """Return the configuration of the baseline twin: the same, but without neighbors and all that is done with them."""
    return replace(
        config,
        retrieval=replace(config.retrieval, k=0),
        size=replace(config.size, cca_layers=[]),
        data=replace(config.data, neighbor_dropout=0.0),
    )


def model_size(config: RunConfig) -> SizeConfig:
    """Return the size of the model; without neighbors it has no layers for them.

    Raises:
        ConfigurationError: No model can have this size and these settings.
    """
    size = config.size if config.retrieval.k else without_retrieval(config).size
    # Some tokenizers do not know their vocabulary size yet.
    check_model(size, config.model, getattr(config.tokenizer, "vocabulary_size", 1))
    return size


def base_model(config: RunConfig) -> "BaseModel | None":
    """Return the pretrained decoder that a run's models have; None for the paper's.

    Raises:
        ConfigurationError: There is no such model.
    """
    if config.backbone.name is Backbone.own:
        return None
    from retro_lab.runs.base_model import BaseModel  # which loads much of transformers

    assert config.backbone.model is not None
    return BaseModel.of(config.backbone.model, config.backbone.revision)


def is_untrained(config: RunConfig) -> bool:
    """Return whether a run's baseline is a pretrained decoder as it is."""
    return config.backbone.name is Backbone.hf and config.init.frozen and not config.retrieval.k


def model_settings(config: RunConfig, tokenizer: DocumentTokenizer) -> ModelSettings:
    """Return the settings that the model of a run is built from.

    Raises:
        ConfigurationError: The tokenizer has ids that a pretrained decoder does not know.
    """
    base, backbone, vocabulary_size = base_model(config), None, tokenizer.vocabulary_size
    if base is not None:
        if tokenizer.document_marker >= base.vocabulary_size:
            raise ConfigurationError(
                f"The document marker has the id {tokenizer.document_marker}, outside of the {base.vocabulary_size:,} "
                f"ids of {base.name}; set tokenizer.marker to a token that the base knows, such as its end of text."
            )
        if vocabulary_size > base.vocabulary_size:
            raise ConfigurationError(
                f"The tokenizer has {vocabulary_size:,} ids, and {base.name} knows {base.vocabulary_size:,}; "
                "set tokenizer=backbone, or the tokenizer.name of the one that the base was trained with."
            )
        vocabulary_size = base.vocabulary_size
        backbone = BackboneSettings(
            model=base.name,
            commit=base.commit,
            sha256=base.sha256,
            frozen=config.init.frozen,
            saved=config.backbone.save_base or not config.init.frozen,
            matrices=base.matrices,
        )
    return ModelSettings(
        size=model_size(config),
        model=config.model,
        vocabulary_size=vocabulary_size,
        k=config.retrieval.k,
        value=config.retrieval.value,
        sequence_length=config.data.sequence_length,
        backbone=backbone,
    )


def model_parameters(config: RunConfig, size: SizeConfig, vocabulary_size: int) -> Parameters:
    """Count the parameters of a run's model, without its weights.

    Args:
        config: Of the run.
        size: Of the model; without layers for neighbors for a baseline.
        vocabulary_size: Of a decoder that is not pretrained.

    Raises:
        ConfigurationError: No model can have this size and these settings.
    """
    base = base_model(config)
    if base is None:
        return Parameters.of(size, config.model, vocabulary_size)
    return Parameters.of_model(base.retrofitted_without_weights(size, config.model))


def model_identity(config: RunConfig, folder: RunFolder, inputs: Inputs) -> dict[str, Any]:
    """Return everything that decides a run's model; its folder is resumed or reused only if this is the same."""
    config = config if config.retrieval.k else without_retrieval(config)
    train = inputs.corpus.stores["train"]
    roles = {"corpus": train.artifact.fingerprint}
    base = base_model(config)
    start = base.sha256 if base is not None else None
    if config.retrieval.k:
        roles["database"] = inputs.database.neighbors_of(train).artifact.fingerprint
        weights = start_weights(config, folder)
        if weights is not None and (sealed := sealed_file(weights)):
            start = file_checksum(sealed)
        elif weights is not None and has_model(weights):
            start = weights_checksum(weights)
    precision = checked_precision(config.trainer.get("precision"), str(config.trainer.get("accelerator", "auto")))
    return identity(asdict(config), precision, roles, start)


def start_weights(config: RunConfig, folder: RunFolder) -> Path | None:
    """Return the baseline that a run's RETRO starts from, a model's folder or a checkpoint; None if from scratch,
    or from a pretrained decoder.
    """
    if config.init.name is not Init.retrofit or config.backbone.name is Backbone.hf:
        return None
    return Path(config.init.checkpoint) if config.init.checkpoint else folder.model(BASELINE)


def build_trainer(
    config: RunConfig,
    folder: Path,
    steps: int,
    callbacks: Iterable[pl.Callback],
    loggers: Iterable[Logger] = (),
    *,
    accumulated: int = 1,
) -> pl.Trainer:
    """Instantiate trainer and callbacks; a null `dirpath` is filled with the model's folder."""
    console.quiet_loggers()  # Lightning set up its own logger when it was imported
    interval = max(1, round(steps / max(1, config.evaluation.curve_points)))
    configured = [instantiate(node) for node in in_folder(config.callbacks, folder)]
    trainer: pl.Trainer = instantiate(
        config.trainer,
        max_steps=steps,
        accumulate_grad_batches=accumulated,
        val_check_interval=interval * accumulated,  # it counts batches, not steps
        check_val_every_n_epoch=None,
        gradient_clip_val=config.schedule.gradient_clip,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=[*configured, *callbacks],
        logger=[*loggers] or False,
    )
    leave_signals_to_us(trainer)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not a plugin of the user's own
        trainer.strategy.checkpoint_io = DurableCheckpoints()
    return trainer


class Observers(NamedTuple):
    """The callbacks of every training, and those of them whose findings go into its record."""

    curve: ValidationCurve
    clock: TrainingClock
    guard: DivergenceGuard
    callbacks: list[pl.Callback]


def observers(
    config: RunConfig,
    folder: Path,
    documents: Callable[[int], list[str]],
    *,
    tokens_per_step: int,
    flops_per_token: float,
) -> Observers:
    """Return the callbacks that watch a training, keep it safe and let it be resumed.

    Args:
        config: Of the run.
        folder: Of the model.
        documents: Returns the ids of the documents in the batch of a step, from 0.
        tokens_per_step: Tokens of an optimizer step.
        flops_per_token: FLOPs of forward and backward pass for a token.
    """
    curve, clock = ValidationCurve(tokens_per_step), TrainingClock()
    guard = DivergenceGuard(
        config.schedule.max_skipped_steps,
        documents,
        f"Try an optimizer.lr below {config.optimizer.lr}, or more schedule.warmup_steps, under a new name "
        f"(name=NAME). Earlier checkpoints are kept in {folder / CHECKPOINT.parent}.",
    )
    callbacks = [
        curve,
        clock,
        guard,
        LongTrainingNotice(tokens_per_step),
        ProgressFile(tokens_per_step, folder),
        TrainingSpeed(tokens_per_step, flops_per_token, config.compute.peak_flops),
        ResumeAtStep(),
        StopWhenAsked(folder / CHECKPOINT),
    ]
    return Observers(curve, clock, guard, callbacks)


def learning_rates(config: RunConfig, steps: int) -> WarmupCosine:
    """Return the schedule of a training of so many steps, relative to `optimizer.lr`."""
    return WarmupCosine(
        steps,
        config.schedule.warmup_steps,
        config.schedule.warmup_start / config.optimizer.lr,
        config.schedule.final_ratio,
    )


def in_folder(nodes: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return the non-null entries of a group, with null folders filled from `folder`."""
    filled = {"dirpath": str(folder / "checkpoints"), "save_dir": str(folder)}
    return [
        node | {key: value for key, value in filled.items() if key in node and node[key] is None}
        for node in (nodes or {}).values()
        if node
    ]


def sequences(config: RunConfig, store: TokenStore, database: Retriever | None) -> Sequences:
    """Return the sequences of a text, with their neighbors if there is a database."""
    retrieved = database.retrieved_by(store, config.retrieval.value) if database is not None else None
    return Sequences(store, retrieved, config.data.sequence_length, with_documents=config.model.document_masks)


def windows(
    config: RunConfig,
    store: TokenStore,
    database: Retriever | None,
    ks: Iterable[int],
    max_tokens: float,
    stride: int | None = None,
) -> Windows:
    """Cut the documents of a text into evaluation windows, with neighbors for the largest k.

    `stride` is the text's own; None takes `evaluation.stride`.
    """
    k = max(ks)
    read = sequences(config, store, database if k else None)
    return Windows(read, stride or config.evaluation.stride, config.evaluation.batch_size, k, max_tokens)
