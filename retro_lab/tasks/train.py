"""`task=train`: train one model, RETRO or (with `retrieval.k=0`) its baseline, and evaluate it."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from pytorch_lightning.loggers import Logger

from retro_lab import console
from retro_lab.corpus.corpus import Corpus
from retro_lab.corpus.filtering import Dropped
from retro_lab.cost.flops import TRAINING_TO_FORWARD
from retro_lab.model.sharding import whole_weights
from retro_lab.runs.folder import RunFolder, model_name
from retro_lab.runs.identity import check_identity, write_identity
from retro_lab.runs.provenance import provenance
from retro_lab.runs.records import (
    RESULT_NAME,
    CorpusSummary,
    DatabaseSummary,
    DroppedDocuments,
    ModelRecord,
    NearestTrainingDocument,
    Parameters,
    load_result,
    write_result,
)
from retro_lab.runs.trained_model import ModelSettings, save_model
from retro_lab.tasks import report
from retro_lab.tasks.assemble import (
    base_model,
    build_trainer,
    in_folder,
    is_untrained,
    learning_rates,
    model_identity,
    model_settings,
    observers,
    sequences,
    start_weights,
    windows,
)
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.checks import check_knn_lm, check_start, check_training
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.evaluate import evaluate, mean_token_flops
from retro_lab.training.batches import accumulated_batches
from retro_lab.training.checkpoints import resumable
from retro_lab.training.data import RetroDataModule
from retro_lab.training.devices import devices_used
from retro_lab.training.loggers import build_loggers, describe_run, finish_loggers, log_scores, reopen_loggers
from retro_lab.training.module import RetroModule, freeze_all_but_retrieval
from retro_lab.training.sharding import ShardedStrategy
from retro_lab.training.training import baseline_weights, fit, stopped_by


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train and evaluate the model of `retrieval.k`, then report on the run folder."""
    check_training(config)
    check_knn_lm(config, [model_name(config.retrieval.k)])
    check_start(config, folder)
    with folder.held(), Inputs(config) as inputs:
        train_models({model_name(config.retrieval.k): config}, folder, inputs)


def train_models(configs: Mapping[str, RunConfig], folder: RunFolder, inputs: Inputs) -> None:
    """Train and evaluate the models of one run, then report.

    Args:
        configs: Of each model, by its name (`retro_lab.runs.folder.MODELS`); they share `inputs`.
        folder: Of the run; the caller holds its lock.
        inputs: Built here if they have not been.

    Raises:
        ConfigurationError: The folder holds a model that was trained with other settings or on other data.
    """
    for name, config in configs.items():  # check all before training any
        check_identity(folder.model(name), model_identity(config, folder, inputs))
    inputs.build()
    folder.note()
    for name, config in configs.items():
        train_model(name, config, folder, inputs)
    report.run(config, folder)


def train_model(name: str, config: RunConfig, folder: RunFolder, inputs: Inputs) -> ModelRecord:
    """Train and evaluate a model in its folder, skipping whatever is already done.

    A model that exists there is taken to be the right one, because `check_identity` has compared it.
    """
    path = folder.model(name)
    result = path / RESULT_NAME
    loggers = build_loggers(in_folder(config.logger, path), path) if not result.is_file() else []
    if result.is_file():
        record = load_result(result)
        end = f"; it was {record.stop}: delete {result} to train on from there" if record.stop else ""
        done = f"trained on {record.tokens:,} tokens" if record.is_trained else "the base model, not trained"
        console.status(name, f"reusing {path}, {done}{end}")
    elif is_untrained(config):
        record = _take_base(name, config, folder, inputs, loggers)
    else:
        record = _train(name, config, folder, inputs, loggers)
    scored = evaluate(config, path, record, inputs)
    if scored != record:
        loggers = loggers or reopen_loggers(in_folder(config.logger, path), path)
        log_scores(loggers, scored)
    finish_loggers(loggers)
    return scored


def _train(name: str, config: RunConfig, folder: RunFolder, inputs: Inputs, loggers: list[Logger]) -> ModelRecord:
    k, path = config.retrieval.k, folder.model(name)
    tokenizer = inputs.corpus.stores["train"].tokenizer
    settings = model_settings(config, tokenizer)
    tokens_per_step = config.data.tokens_per_step
    steps = max(1, round(config.schedule.tokens / tokens_per_step))
    training_flops = TRAINING_TO_FORWARD * mean_token_flops(settings, k, settings.sequence_length)
    data = _data(config, inputs)
    watching = observers(config, path, data.documents, tokens_per_step=tokens_per_step, flops_per_token=training_flops)
    accumulated = accumulated_batches(
        config.data.batch_size, config.data.micro_batch_size, devices_used(config.trainer)
    )
    trainer = build_trainer(config, path, steps, watching.callbacks, loggers, accumulated=accumulated)
    pl.seed_everything(config.seed, verbose=False)
    module = _module(config, folder, settings, steps, sharded=isinstance(trainer.strategy, ShardedStrategy))
    _announce(config, module, inputs, trainer, path)
    parameters = Parameters(**module.model.parameter_counts())
    database = _summarize_database(inputs) if k else None
    identity = model_identity(config, folder, inputs)
    facts = {
        "model": name,
        "parameters": asdict(parameters),
        "steps": steps,
        "training_flops_per_token": training_flops,
        "corpus_fingerprint": identity["corpus"],
        "database_fingerprint": identity.get("database"),
        "database": asdict(database) if database else None,
        "provenance": asdict(provenance()),
    }
    describe_run(trainer.loggers, asdict(config), facts)
    if trainer.is_global_zero:
        write_identity(path, identity)
    fit(trainer, module, data, path)
    stopped = stopped_by(trainer)
    if stopped:
        console.status(name, f"stopped by {stopped} after {trainer.global_step:,} of {steps:,} steps")
    tokens = trainer.global_step * tokens_per_step
    record = ModelRecord(
        model=name,
        size=config.size.name,
        k=k,
        parameters=parameters,
        tokens=tokens,
        steps=trainer.global_step,
        planned_steps=steps if stopped else None,
        stopped=stopped,
        skipped_steps=watching.guard.skipped,
        flops=training_flops * tokens,
        seconds=round(watching.clock.seconds, 1),
        seed=config.seed,
        corpus=_summarize_corpus(inputs.corpus),
        database=database,
        evaluations=(),
        curve=watching.curve.curve,
        provenance=provenance(),
    )
    weights = whole_weights(module.model, settings.saved_names(module.model))
    if trainer.is_global_zero:
        base = getattr(module.model, "base", None)
        save_model(path, weights, settings, tokenizer, base.config if base is not None else None)
        write_result(path / RESULT_NAME, record)
    trainer.strategy.barrier()  # before other ranks read what rank 0 wrote
    return record


def _take_base(name: str, config: RunConfig, folder: RunFolder, inputs: Inputs, loggers: list[Logger]) -> ModelRecord:
    """Save and record the pretrained decoder that is a run's baseline, and is not trained."""
    path, base = folder.model(name), base_model(config)
    assert base is not None
    tokenizer = inputs.corpus.stores["train"].tokenizer
    settings = model_settings(config, tokenizer)
    model = settings.build(base.load())
    parameters = Parameters(**model.parameter_counts())
    console.status(name, f"{base.name}: {parameters.total:,} parameters, not trained")
    identity = model_identity(config, folder, inputs)
    facts = {"model": name, "parameters": asdict(parameters), "steps": 0, "provenance": asdict(provenance())}
    describe_run(loggers, asdict(config), facts)
    record = ModelRecord(
        model=name,
        size=config.size.name,
        k=0,
        parameters=parameters,
        tokens=0,
        steps=0,
        flops=0.0,
        seconds=0.0,
        seed=config.seed,
        corpus=_summarize_corpus(inputs.corpus),
        evaluations=(),
        curve=(),
        provenance=provenance(),
    )
    if console.is_main_process():
        write_identity(path, identity)
        weights = whole_weights(model, settings.saved_names(model))
        save_model(path, weights, settings, tokenizer, model.base.config)  # type: ignore[union-attr]
        write_result(path / RESULT_NAME, record)
    return record


def _scored_k(config: RunConfig) -> list[int]:
    """Return the numbers of neighbors that the curve is measured with."""
    return sorted({0, config.retrieval.k})


def _data(config: RunConfig, inputs: Inputs) -> RetroDataModule:
    stores, database = inputs.corpus.stores, inputs.database if config.retrieval.k else None
    return RetroDataModule(
        sequences(config, stores["train"], database),
        windows(config, stores["validation"], database, _scored_k(config), config.evaluation.curve_tokens),
        batch_size=config.data.batch_size,
        k=config.retrieval.k,
        seed=config.seed,
        workers=config.data.workers,
        overfit_batches=config.data.overfit_batches,
        neighbor_dropout=config.data.neighbor_dropout,
    )


def _module(config: RunConfig, folder: RunFolder, settings: ModelSettings, steps: int, *, sharded: bool) -> RetroModule:
    """Build the model and what trains it; a sharded model, which may not fit into one process, without weights."""
    base = base_model(config)
    # A pretrained decoder makes tensors of its own that are not among its weights, so it is never on the meta device.
    with torch.device("meta") if sharded and base is None else nullcontext():
        model = settings.build(base.load() if base else None)
    model.checkpoint_activations(config.compute.checkpoint_activations)
    start = start_weights(config, folder) if config.retrieval.k else None
    first_weights = None if start is None else baseline_weights(model, start)
    if config.retrieval.k and config.init.freezes:
        freeze_all_but_retrieval(model)
    return RetroModule(
        model,
        config.retrieval.k,
        _scored_k(config),
        instantiate(config.optimizer),
        learning_rates(config, steps),
        config.seed,
        start=first_weights,
        compile=config.compute.compile,
    )


def _announce(config: RunConfig, module: RetroModule, inputs: Inputs, trainer: pl.Trainer, folder: Path) -> None:
    """Print the start-up summary."""
    schedule, k = module.schedule, config.retrieval.k
    counts, steps = module.model.parameter_counts(), schedule.steps
    tokens_per_step = config.data.tokens_per_step
    lines = {
        "model": f"{folder.name}, size {config.size.name}: {counts['total']:,} parameters, "
        f"{counts['non_embedding']:,} without embeddings",
        "database": f"{inputs.database.description}, k = {k}" if k else "none",
        "devices": f"{trainer.world_size} x {trainer.strategy.root_device.type}, precision {trainer.precision}",
        "training": f"{steps:,} steps of {tokens_per_step:,} tokens, {steps * tokens_per_step:,} in all",
        "folder": str(folder),
    }
    for subject, message in lines.items():
        console.status(subject, message)
    if schedule.warmup < schedule.warmup_steps:
        console.status(
            "schedule",
            f"warm-up shortened to {schedule.warmup:,} steps, a tenth of the training, from "
            f"schedule.warmup_steps={schedule.warmup_steps}",
        )
    if checkpoint := resumable(folder):
        console.status("resuming", f"from {checkpoint}")


def _summarize_corpus(corpus: Corpus) -> CorpusSummary:
    tokens = {split: store.facts.tokens for split, store in corpus.stores.items()}
    documents = {split: store.documents for split, store in corpus.stores.items()}
    return CorpusSummary(
        source=corpus.name,
        train_tokens=tokens["train"],
        train_documents=documents["train"],
        validation_tokens=tokens["validation"],
        validation_documents=documents["validation"],
        test_tokens=tokens["test"],
        test_documents=documents["test"],
        deduplicated=_summarize_dropped(corpus.deduplicated),
        decontaminated=_summarize_dropped(corpus.decontaminated),
        nearest_training_document={
            split: NearestTrainingDocument(median=nearest.median, largest=nearest.largest)
            for split, nearest in corpus.nearest.items()
        },
    )


def _summarize_dropped(found: Dropped | None) -> DroppedDocuments | None:
    if found is None:
        return None
    return DroppedDocuments(documents=found.dropped.get("documents", 0), similarity=found.similarity)


def _summarize_database(inputs: Inputs) -> DatabaseSummary:
    database = inputs.database
    return DatabaseSummary(
        corpus=database.name,
        chunks=database.chunks,
        tokens=database.tokens,
        fraction=database.fraction,
        index=database.method,
        chunks_with_neighbors=database.neighbors_of(inputs.corpus.stores["train"]).with_neighbors,
        training_overlaps=database.overlaps_of(inputs.corpus.stores["train"]).facts.at_least,
        flops=database.flops(inputs.corpus.stores["train"]),
    )
