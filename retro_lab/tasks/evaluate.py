"""`task=evaluate`: score the trained models of a run folder on whole held-out documents.

A score is identified by what was measured (`retro_lab.runs.records.Evaluation`): other texts, windows, k or neighbors
add scores to the existing ones.
"""

from dataclasses import replace
from pathlib import Path

import torch

from retro_lab import console
from retro_lab.cost.flops import required_flops
from retro_lab.errors import ArtifactError
from retro_lab.evaluation.scoring import ScoredData, ScoringModule, check_finite
from retro_lab.runs.chunk_scores import is_from_earlier_release, write_chunk_scores
from retro_lab.runs.folder import BASELINE, MODELS, RunFolder
from retro_lab.runs.identity import check_scored
from retro_lab.runs.records import (
    RESULT_NAME,
    Evaluation,
    Measured,
    ModelRecord,
    Retrieved,
    ScoredText,
    load_result,
    scores_name,
    write_result,
)
from retro_lab.runs.trained_model import ModelSettings, open_run
from retro_lab.tasks import report
from retro_lab.tasks.assemble import build_trainer, in_folder, model_identity, windows
from retro_lab.tasks.build import HeldOutText, Inputs
from retro_lab.tasks.checks import check_evaluation, check_knn_lm
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.knn_lm import knn_lm_scores
from retro_lab.training.loggers import finish_loggers, log_scores, reopen_loggers


def run(config: RunConfig, folder: RunFolder) -> None:
    """Score each model of the run folder on every requested text with every requested k, then report.

    Raises:
        ArtifactError: The run folder holds no trained model.
        ConfigurationError: A model was trained with other settings or data than it would be scored with.
    """
    check_evaluation(config)
    with folder.held():
        found = (name for name in MODELS if (folder.path / name / RESULT_NAME).is_file())
        records = {name: load_result(folder.path / name / RESULT_NAME) for name in found}
        if not records:
            raise ArtifactError(f"{folder.path} holds no trained model; train one with: {folder.command}")
        check_knn_lm(config, records)
        with Inputs(config) as inputs:
            for name, record in records.items():
                check_scored(folder.path / name, model_identity(_with_k(config, record.k), folder, inputs))
            folder.note()
            for name, record in records.items():
                scored = evaluate(_with_k(config, record.k), folder.path / name, record, inputs)
                if scored != record:
                    loggers = reopen_loggers(in_folder(config.logger, folder.path / name), folder.path / name)
                    log_scores(loggers, scored)
                    finish_loggers(loggers)
        report.run(config, folder)


def _wanted_neighbors(config: RunConfig) -> list[int]:
    """Return the values of k to score a model with: its own and those of `evaluation.k`."""
    k = config.retrieval.k
    return sorted({k, *config.evaluation.k}) if k else [0]


def evaluate(config: RunConfig, folder: Path, record: ModelRecord, inputs: Inputs) -> ModelRecord:
    """Measure a trained model's missing scores, and write them into its record.

    Each chunk's share in a score goes into a file beside the record, with what the chunk has in common with its
    neighbors. A score whose file is gone, or is of an earlier release, is measured again.

    Args:
        config: Of the run; `retrieval.k` is the model's.
        folder: Of the model.
        record: Of the model so far.
        inputs: The texts to score, and the database to retrieve from.

    Raises:
        ArtifactError: The model cannot be opened.
        DivergenceError: A score is not finite.
    """
    wanted: dict[HeldOutText, list[Measured]] = {
        text: [_measured(config, text, k, inputs) for k in _wanted_neighbors(config)] for text in inputs.texts
    }
    known = {entry.measured: entry for entry in record.evaluations if _is_complete(folder / entry.scores)}
    missing = {text: [key for key in keys if key not in known] for text, keys in wanted.items()}
    if any(missing.values()):
        trained = open_run(folder)
        trainer = build_trainer(config, folder, steps=1, callbacks=())
        for text, keys in missing.items():
            if not keys:
                continue
            ks = [k for _, k, _, _ in keys]
            database = inputs.database if max(ks) else None
            cut = windows(config, text.store, database, ks, float("inf"))
            console.status("evaluating", f"{folder.name} on {cut.documents:,} documents, {text.description}; k = {ks}")
            module = ScoringModule(trained.model, ks)
            with torch.no_grad():  # FSDP gathers weights into tensors that inference mode would not let it reuse
                trainer.validate(module, datamodule=ScoredData(cut), verbose=False)
            check_finite(module)
            for (scored, k, retrieved, _), (_, metric) in zip(keys, module.measured(), strict=True):
                score = metric.compute()
                overlap = database.overlaps_of(text.store).values if k and database else None
                chunks, name = cut.chunk_scores(score, overlap), scores_name(scored, k, retrieved)
                if console.is_main_process():
                    write_chunk_scores(folder / name, chunks)
                level = chunks.bits_per_byte()
                assert level is not None
                flops = mean_token_flops(trained.settings, k, scored.sequence_length) * int(score.tokens)
                known[scored, k, retrieved, None] = Evaluation(
                    text=scored,
                    k=k,
                    retrieved=retrieved,
                    bits_per_byte=level,
                    perplexity=score.perplexity,
                    tokens=int(score.tokens),
                    bytes=int(score.bytes),
                    documents=int(score.documents),
                    flops_per_byte=flops / int(score.bytes),
                    scores=name,
                )
    requested = [key for keys in wanted.values() for key in keys]
    if config.evaluation.knn_lm.k and record.model == BASELINE:
        own = {text: known[keys[0]] for text, keys in wanted.items()}
        for entry in knn_lm_scores(config, folder, inputs, own, known):
            known[entry.measured] = entry
            requested.append(entry.measured)
    # Scores requested now come first, because the first text is the main one.
    order = dict.fromkeys([*requested, *known])
    scored_record = replace(record, evaluations=tuple(known[key] for key in order))
    if scored_record != record and console.is_main_process():
        write_result(folder / RESULT_NAME, scored_record)
    return scored_record


def _is_complete(path: Path) -> bool:
    return path.is_file() and not is_from_earlier_release(path)


def mean_token_flops(settings: ModelSettings, k: int, sequence_length: int) -> float:
    """Return the FLOPs of a forward pass with k neighbors, for the mean token of a sequence.

    Raises:
        ConfigurationError: The model has no layers for neighbors.
    """
    sequence = required_flops(
        settings.size,
        settings.model,
        settings.vocabulary_size,
        sequence_length=sequence_length,
        k=k,
        neighbor_length=settings.value.length(settings.model.chunk_length),
    )
    return sequence.total / sequence_length


def _with_k(config: RunConfig, k: int) -> RunConfig:
    return replace(config, retrieval=replace(config.retrieval, k=k))


def _measured(config: RunConfig, text: HeldOutText, k: int, inputs: Inputs) -> Measured:
    scored = ScoredText(
        name=text.name,
        description=text.description,
        altered_documents=text.store.facts.altered,
        tokens=text.store.artifact.fingerprint,
        sequence_length=config.data.sequence_length,
        stride=config.evaluation.stride,
    )
    if not k:
        return scored, 0, None, None
    database = inputs.database
    retrieved = Retrieved(
        database=database.description,
        source=database.source_of(text.store).artifact.fingerprint,
        neighbors=database.neighbors_of(text.store).artifact.fingerprint,
    )
    return scored, k, retrieved, None
