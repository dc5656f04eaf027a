"""`task=train`: train one model, RETRO or (with `retrieval.k=0`) its baseline, and evaluate it."""

from collections.abc import Iterable
from pathlib import Path

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig

from retro_lab import console
from retro_lab.artifacts.manifest import write_json
from retro_lab.corpus.corpus import Corpus
from retro_lab.launch.provenance import provenance
from retro_lab.launch.run_folder import held, note_configuration, run_folder
from retro_lab.model.retro import RetroModel
from retro_lab.report.records import (
    RESULT_NAME,
    CorpusSummary,
    DatabaseSummary,
    ModelRecord,
    Parameters,
    load_result,
    write_result,
)
from retro_lab.tasks import report
from retro_lab.tasks.assemble import build_model, build_trainer, sequences, windows
from retro_lab.tasks.build import Database, build_corpus, build_database
from retro_lab.tasks.checks import check_start, check_training
from retro_lab.tasks.evaluate import evaluate, missing_evaluations
from retro_lab.tasks.identity import IDENTITY_NAME, check_identity, identity, start_checkpoint
from retro_lab.training.checkpoints import CHECKPOINT, resumable
from retro_lab.training.data import RetroDataModule
from retro_lab.training.divergence import DivergenceGuard
from retro_lab.training.loggers import finish_loggers
from retro_lab.training.module import RetroModule, freeze_all_but_retrieval
from retro_lab.training.schedule import WarmupCosine
from retro_lab.training.training import TrainingClock, ValidationCurve, fit, load_baseline_weights, stopped_by


def run(config: DictConfig) -> None:
    """Train and evaluate the model of `retrieval.k`, then report on the run folder."""
    k = config.retrieval.k
    check_training(config, k)
    if k:
        check_start(config, run_folder())
    with held(run_folder()):
        corpus = build_corpus(config)
        database = build_database(config, corpus) if k else None
        begin(config, [k], run_folder(), corpus, database)
        train_model(config, k, run_folder(), corpus, database)
        report.run(config)


def model_name(k: int) -> str:
    """Return the name of a model by what it retrieves: the baseline is the RETRO that retrieves nothing."""
    return "retro" if k else "baseline"


def begin(config: DictConfig, ks: Iterable[int], run: Path, corpus: Corpus, database: Database | None) -> None:
    """Check the models that are there already, before any is trained, and note the configuration down.

    Raises:
        ConfigurationError: A folder holds a model that was trained with other settings or on other data.
    """
    for k in ks:
        check_identity(run / model_name(k), identity(config, k, corpus, database if k else None))
    note_configuration(config)


def train_model(config: DictConfig, k: int, run: Path, corpus: Corpus, database: Database | None) -> ModelRecord:
    """Train and evaluate the model with `k` neighbors in its folder below `run`; do only what is not done yet.

    What is there already is taken for the model wanted: `begin` has checked it.
    """
    folder = run / model_name(k)
    result = folder / RESULT_NAME
    if result.is_file():
        record = load_result(result)
        end = f"; it was {record.stop}: delete {result} to train on from there" if record.stop else ""
        console.status(model_name(k), f"reusing {folder}, trained on {record.tokens:,} tokens{end}")
    else:
        record = _train(config, k, folder, corpus, database)
    missing = missing_evaluations(config, record, corpus, database)
    if missing:
        record = evaluate(config, record, missing, folder, corpus, database)
    return record


def _train(config: DictConfig, k: int, folder: Path, corpus: Corpus, database: Database | None) -> ModelRecord:
    pl.seed_everything(config.seed, verbose=False)
    model = build_model(config, k, corpus)
    model.checkpoint_activations(config.compute.checkpoint_activations)
    start = start_checkpoint(config, folder.parent) if k else None
    if start is not None:
        load_baseline_weights(model, start)
        freeze_all_but_retrieval(model)
    tokens_per_step = config.data.sequence_length * config.data.batch_size
    steps = max(1, round(config.schedule.tokens / tokens_per_step))
    schedule = WarmupCosine(
        steps,
        config.schedule.warmup_steps,
        config.schedule.warmup_start / config.optimizer.lr,
        config.schedule.final_ratio,
    )
    curve, clock = ValidationCurve(tokens_per_step), TrainingClock()
    guard = DivergenceGuard(
        f"Try an optimizer.lr below {config.optimizer.lr}, or more schedule.warmup_steps, under a name of its own "
        f"(name=NAME). Checkpoints from before are kept in {folder / CHECKPOINT.parent}."
    )
    trainer = build_trainer(config, folder, steps, [curve, clock, guard])
    module = RetroModule(
        model,
        k,
        sorted({0, k}),
        instantiate(config.optimizer),
        schedule,
        config.seed,
        compile=config.compute.compile,
    )
    data = RetroDataModule(
        sequences(config, "train", corpus, database),
        windows(config, corpus, database, k, config.evaluation.curve_tokens),
        batch_size=config.data.batch_size,
        k=k,
        seed=config.seed,
        workers=config.data.workers,
        overfit_batches=config.data.overfit_batches,
    )
    _announce(config, k, model, database, trainer, tokens_per_step, schedule, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if trainer.is_global_zero:
        write_json(folder / IDENTITY_NAME, identity(config, k, corpus, database))
    fit(trainer, module, data, folder)
    stopped = stopped_by(trainer)
    if stopped:
        console.status(model_name(k), f"stopped by {stopped} after {trainer.global_step:,} of {steps:,} steps")
    record = ModelRecord(
        model=model_name(k),
        size=config.size.name,
        k=k,
        parameters=Parameters(**model.parameter_counts()),
        tokens=trainer.global_step * tokens_per_step,
        steps=trainer.global_step,
        planned_steps=steps if stopped else None,
        stopped=stopped,
        seconds=round(clock.seconds, 1),
        seed=config.seed,
        corpus=_summarize_corpus(corpus),
        database=_summarize_database(database) if database else None,
        evaluations=(),
        curve=curve.curve,
        provenance=provenance(),
    )
    finish_loggers(trainer.loggers)
    if trainer.is_global_zero:
        write_result(folder / RESULT_NAME, record)
    return record


def _announce(
    config: DictConfig,
    k: int,
    model: RetroModel,
    database: Database | None,
    trainer: pl.Trainer,
    tokens_per_step: int,
    schedule: WarmupCosine,
    folder: Path,
) -> None:
    """Print the start-up summary."""
    counts, steps = model.parameter_counts(), schedule.steps
    lines = {
        "model": f"{model_name(k)}, size {config.size.name}: {counts['total']:,} parameters, "
        f"{counts['non_embedding']:,} without embeddings",
        "database": f"{database.chunks:,} chunks, k = {k}" if database else "none",
        "devices": f"{trainer.world_size} x {trainer.strategy.root_device.type}, precision {trainer.precision}",
        "training": f"{steps:,} steps of {tokens_per_step:,} tokens, {steps * tokens_per_step:,} in all",
        "folder": str(folder),
    }
    for subject, message in lines.items():
        console.status(subject, message)
    if schedule.warmup < schedule.warmup_steps:
        console.status(
            "schedule",
            f"warm-up cut to {schedule.warmup:,} steps, a tenth of the training, from "
            f"schedule.warmup_steps={schedule.warmup_steps}",
        )
    if checkpoint := resumable(folder):
        console.status("resuming", f"from {checkpoint}")


def _summarize_corpus(corpus: Corpus) -> CorpusSummary:
    train, validation = corpus.stores["train"], corpus.stores["validation"]
    return CorpusSummary(
        source=corpus.name,
        train_tokens=train.artifact.facts["tokens"],
        train_documents=train.documents,
        validation_tokens=validation.artifact.facts["tokens"],
        validation_documents=validation.documents,
        altered_documents=validation.artifact.facts["altered"],
    )


def _summarize_database(database: Database) -> DatabaseSummary:
    return DatabaseSummary(
        chunks=database.chunks,
        tokens=database.tokens,
        fraction=database.fraction,
        index=database.method,
        chunks_with_neighbors=database.neighbors["train"].facts["with_neighbors"],
    )
