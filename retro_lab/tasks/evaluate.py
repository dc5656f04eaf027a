"""`task=evaluate`: score the trained models of a run folder on all held-out documents."""

from dataclasses import replace
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from retro_lab import console
from retro_lab.corpus.corpus import Corpus
from retro_lab.errors import ArtifactError, ConfigurationError
from retro_lab.launch.run_folder import held, note_configuration, run_folder
from retro_lab.report.records import MODELS, RESULT_NAME, Evaluation, ModelRecord, load_result, write_result
from retro_lab.tasks import report
from retro_lab.tasks.assemble import build_model, build_trainer, sequences, windows
from retro_lab.tasks.build import Database, build_corpus, build_database
from retro_lab.tasks.checks import check_evaluation
from retro_lab.tasks.identity import check_scored, identity, scored_windows
from retro_lab.training.checkpoints import CHECKPOINT
from retro_lab.training.data import RetroDataModule
from retro_lab.training.divergence import check_finite
from retro_lab.training.module import RetroModule
from retro_lab.training.schedule import WarmupCosine
from retro_lab.training.training import model_weights


def run(config: DictConfig) -> None:
    """Evaluate each model of the run folder with every k asked for, then report.

    Raises:
        ArtifactError: The run folder holds no trained model.
        ConfigurationError: A model was trained on other data than it would be scored with.
    """
    check_evaluation(config)
    run = run_folder()
    with held(run):
        found = (name for name in MODELS if (run / name / RESULT_NAME).is_file())
        records = {name: load_result(run / name / RESULT_NAME) for name in found}
        if not records:
            raise ArtifactError(f"{run} holds no trained model; train one with the same command and task=compare.")
        corpus = build_corpus(config)
        database = build_database(config, corpus) if any(record.k for record in records.values()) else None
        for name, record in records.items():
            check_scored(run / name, identity(config, record.k, corpus, database if record.k else None))
        note_configuration(config)
        for name, record in records.items():
            evaluate(config, record, wanted_neighbors(config, record.k), run / name, corpus, database)
        report.run(config)


def wanted_neighbors(config: DictConfig, k: int) -> list[int]:
    """Return the values of k to evaluate a model with: its own and those of `evaluation.neighbors`."""
    return sorted({k, *config.evaluation.neighbors}) if k else [0]


def missing_evaluations(
    config: DictConfig, record: ModelRecord, corpus: Corpus, database: Database | None
) -> list[int]:
    """Return the values of k that are wanted and not scored yet, or scored on other text, windows or neighbors."""
    usable = {entry.neighbors for entry in record.evaluations if _measured_so(entry, config, corpus, database)}
    return [neighbors for neighbors in wanted_neighbors(config, record.k) if neighbors not in usable]


def _measured_so(entry: Evaluation, config: DictConfig, corpus: Corpus, database: Database | None) -> bool:
    """Tell whether a score was measured as it would be now."""
    retrieved = _retrieved(entry.neighbors, database)
    return entry.windows == scored_windows(config, corpus) and entry.retrieved == retrieved


def _retrieved(neighbors: int, database: Database | None) -> str | None:
    return database.neighbors["validation"].fingerprint if neighbors and database else None


def evaluate(
    config: DictConfig,
    record: ModelRecord,
    neighbors: list[int],
    folder: Path,
    corpus: Corpus,
    database: Database | None,
) -> ModelRecord:
    """Score the model in `folder` on all held-out documents, and write the scores into its result.

    Raises:
        ConfigurationError: The checkpoint does not fit the size and model configured.
    """
    model = build_model(config, record.k, corpus)
    try:
        model.load_state_dict(model_weights(folder / CHECKPOINT))
    except RuntimeError as error:
        raise ConfigurationError(
            f"{folder / CHECKPOINT} holds a model of another shape than size={config.size.name} and model say; "
            "use the overrides it was trained with."
        ) from error
    every_document = windows(config, corpus, database if record.k else None, max(neighbors), float("inf"))
    module = RetroModule(model, record.k, neighbors, instantiate(config.optimizer), WarmupCosine(1, 0, 1, 1), 0)
    trainer = build_trainer(config, folder, steps=1, callbacks=[], logging=False)
    train = sequences(config, "train", corpus, None)
    data = RetroDataModule(train, every_document, batch_size=1, k=record.k, seed=0, workers=0)
    console.status("evaluating", f"{folder.name} on {every_document.documents:,} held-out documents, k = {neighbors}")
    with torch.inference_mode():
        trainer.validate(module, datamodule=data, verbose=False)
    check_finite(module)
    scores = [
        Evaluation(
            neighbors=k,
            bits_per_byte=score.bits_per_byte,
            perplexity=score.perplexity,
            tokens=int(score.tokens),
            bytes=int(score.bytes),
            documents=int(score.documents),
            windows=scored_windows(config, corpus),
            retrieved=_retrieved(k, database),
        )
        for k, score in ((k, metric.compute()) for k, metric in module.measured())
    ]
    others = [entry for entry in record.evaluations if entry.neighbors not in neighbors]
    kept = [entry for entry in others if _measured_so(entry, config, corpus, database)]
    if dropped := [entry.neighbors for entry in others if entry not in kept]:
        console.status("evaluating", f"scores with k = {dropped} are dropped: they were measured in another way")
    record = replace(record, evaluations=tuple(sorted([*kept, *scores], key=lambda entry: entry.neighbors)))
    if trainer.is_global_zero:
        write_result(folder / RESULT_NAME, record)
    return record
