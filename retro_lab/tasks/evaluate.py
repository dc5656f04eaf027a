"""`task=evaluate`: score the trained models of a run folder on whole held-out documents.

A score is identified by what was measured (`retro_lab.runs.records.Evaluation`): other texts, windows, k or neighbors
add scores to the existing ones.
"""

from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch

from retro_lab import console
from retro_lab.cost.flops import required_flops
from retro_lab.errors import ArtifactError
from retro_lab.evaluation.score import Score
from retro_lab.evaluation.scoring import ScoredData, ScoringModule, check_finite
from retro_lab.evaluation.windows import Windows
from retro_lab.retrieval.filters import FilteredDatabase
from retro_lab.retrieval.parts import PartOfDatabase
from retro_lab.retrieval.random_databases import RandomDatabase
from retro_lab.retrieval.retriever import Retriever
from retro_lab.runs.chunk_scores import ChunkScores, is_from_earlier_release, write_chunk_scores
from retro_lab.runs.examples import SHOWN, Examples, evenly_spaced, examples, write_examples
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
from retro_lab.runs.trained_model import ModelSettings, open_model
from retro_lab.tasks import report
from retro_lab.tasks.assemble import build_trainer, in_folder, model_identity, windows
from retro_lab.tasks.build import HeldOutText, Inputs, ScoredRetrieval
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


@dataclass(frozen=True)
class _Score:
    """A score that is wanted: what is measured, and where its neighbors come from."""

    measured: Measured
    retriever: Retriever | None
    """None if nothing is scored with neighbors beside it."""

    @property
    def k(self) -> int:
        return self.measured[1]


def _wanted(config: RunConfig, text: HeldOutText, inputs: Inputs) -> list[_Score]:
    """Return the scores wanted of a model on a text, those with one retriever side by side.

    They are those with its own k and with `evaluation.k`, and those with its own k and other neighbors.
    """
    k = config.retrieval.k
    scored = ScoredText(
        name=text.name,
        description=text.description,
        altered_documents=text.store.facts.altered,
        tokens=text.store.artifact.fingerprint,
        sequence_length=config.data.sequence_length,
        stride=text.stride,
    )
    if not k:
        return [_Score((scored, 0, None, None), None)]
    own = ScoredRetrieval(inputs.database)
    found = []
    for each in sorted({k, *config.evaluation.k}):
        retrieved = _retrieved(own, text, each) if each else None
        found.append(_Score((scored, each, retrieved, None), inputs.database))
    for retrieval in inputs.other_retrievals:
        found.append(_Score((scored, k, _retrieved(retrieval, text, k), None), retrieval.retriever))
    return list({each.measured: each for each in found}.values())


def evaluate(config: RunConfig, folder: Path, record: ModelRecord, inputs: Inputs) -> ModelRecord:
    """Measure a trained model's missing scores, and write them into its record.

    Each chunk's share in a score goes into a file beside the record, with what the chunk has in common with its
    neighbors. A score whose file is gone, or is of an earlier release, is measured again. Some chunks are kept as text,
    beside their neighbors, for the run's page.

    Args:
        config: Of the run; `retrieval.k` is the model's.
        folder: Of the model.
        record: Of the model so far.
        inputs: The texts to score, and the database to retrieve from.

    Raises:
        ArtifactError: The model cannot be opened.
        DivergenceError: A score is not finite.
    """
    wanted = {text: _wanted(config, text, inputs) for text in inputs.texts}
    known = {entry.measured: entry for entry in record.evaluations if _is_complete(folder / entry.scores)}
    missing = {text: [each for each in found if each.measured not in known] for text, found in wanted.items()}
    if any(missing.values()):
        trained = open_model(folder, base=config.backbone.model)
        trainer = build_trainer(config, folder, steps=1, callbacks=())
        for text, pending in missing.items():
            words = text.words() if pending else None
            for retriever, group in groupby(pending, key=lambda each: each.retriever):
                wanted_here = {each.k: each for each in group}
                cut = windows(config, text.store, retriever, wanted_here, float("inf"), text.stride)
                where = f"; {retriever.description}" if retriever and retriever is not inputs.database else ""
                said = f"{folder.name} on {cut.documents:,} documents, {text.description}; k = {list(wanted_here)}"
                console.status("evaluating", said + where)
                module = ScoringModule(trained.model, wanted_here, counts_hits=text.counts_hits)
                with torch.no_grad():  # FSDP gathers weights into tensors that inference mode would not let it reuse
                    trainer.validate(module, datamodule=ScoredData(cut), verbose=False)
                check_finite(module)
                for k, metric in module.measured():
                    flops = mean_token_flops(trained.settings, k, config.data.sequence_length)
                    entry, chunks = _evaluation(wanted_here[k], metric.compute(), cut, text, words, flops)
                    if console.is_main_process():
                        write_chunk_scores(folder / entry.scores, chunks)
                    known[entry.measured] = entry
    if config.retrieval.k and console.is_main_process():
        write_examples(folder, _examples(config, inputs))
    asked: dict[Measured, Retrieved | None] = {
        each.measured: each.measured[2] for found in wanted.values() for each in found
    }
    if config.evaluation.knn_lm.k and record.model == BASELINE:
        own = {text: known[found[0].measured] for text, found in wanted.items()}
        for entry in knn_lm_scores(config, folder, inputs, own, known):
            known[entry.measured] = entry
            asked[entry.measured] = None
    for key, retrieved in asked.items():
        if retrieved and (entry := known[key]).retrieved and entry.retrieved.chunks is None:
            known[key] = replace(entry, retrieved=retrieved)  # an earlier release told less of its neighbors
    # Scores requested now come first, because the first text is the main one.
    scored_record = replace(record, evaluations=tuple(known[key] for key in dict.fromkeys([*asked, *known])))
    if scored_record.to_json() != record.to_json() and console.is_main_process():
        write_result(folder / RESULT_NAME, scored_record)
    return scored_record


def _evaluation(
    wanted: _Score, score: Score, cut: Windows, text: HeldOutText, words: int | None, token_flops: float
) -> tuple[Evaluation, ChunkScores]:
    """Return a score with each chunk's share in it."""
    scored, k, retrieved, _ = wanted.measured
    overlap = wanted.retriever.overlaps_of(text.store).values if k and wanted.retriever else None
    chunks = cut.chunk_scores(score, overlap)
    level = chunks.bits_per_byte()
    assert level is not None
    entry = Evaluation(
        text=scored,
        k=k,
        retrieved=retrieved,
        bits_per_byte=level,
        perplexity=score.perplexity,
        tokens=int(score.tokens),
        bytes=int(score.bytes),
        documents=int(score.documents),
        words=words,
        accuracy=chunks.accuracy,
        flops_per_byte=token_flops * int(score.tokens) / int(score.bytes),
        scores=scores_name(scored, k, retrieved),
    )
    return entry, chunks


def _examples(config: RunConfig, inputs: Inputs) -> Examples:
    """Return chunks of the main text beside the neighbors that it was scored with, for the run's page."""
    text, database = inputs.texts[0], inputs.database
    store = text.store
    chunks = evenly_spaced(store.chunks, SHOWN)
    table, source = database.neighbors_of(store), database.source_of(store)
    return Examples(
        text=text.description,
        database=database.description,
        examples=examples(store, source, table, chunks, config.retrieval.k),
    )


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
        base=settings.backbone.matrices if settings.backbone else None,
    )
    return sequence.total / sequence_length


def _with_k(config: RunConfig, k: int) -> RunConfig:
    return replace(config, retrieval=replace(config.retrieval, k=k))


def _retrieved(retrieval: ScoredRetrieval, text: HeldOutText, k: int) -> Retrieved:
    """Return what a text is scored with, of which k neighbors are read."""
    retriever, store = retrieval.retriever, text.store
    found = Retrieved(
        database=retriever.description,
        source=retriever.source_of(store).artifact.fingerprint,
        neighbors=retriever.neighbors_of(store).artifact.fingerprint,
        chunks=retriever.chunks,
        tokens=retriever.tokens,
        share=retrieval.share,
    )
    if isinstance(retriever, PartOfDatabase):
        found = replace(found, complete=retriever.complete(store, k))
    if isinstance(retriever, FilteredDatabase):
        found = replace(found, filter=retriever.filter)
    if isinstance(retriever, RandomDatabase):
        above = retriever.complete_above(store, k)
        found = replace(found, seed=retriever.seed, unit=str(retriever.unit), complete_above=above)
    return found
