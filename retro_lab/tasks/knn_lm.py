"""kNN-LM as a part of evaluation: a baseline's scores with what followed the nearest contexts in the database."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from retro_lab import console
from retro_lab.evaluation.hidden_states import Reader
from retro_lab.evaluation.knn_lm import score, tune
from retro_lab.runs.chunk_scores import write_chunk_scores
from retro_lab.runs.records import Evaluation, KnnLm, Measured, scores_name
from retro_lab.tasks.build import HeldOutText, Inputs
from retro_lab.tasks.config import RunConfig
from retro_lab.training.precision import checked_precision


def knn_lm_scores(
    config: RunConfig,
    folder: Path,
    inputs: Inputs,
    own: Mapping[HeldOutText, Evaluation],
    known: Mapping[Measured, Evaluation],
) -> Iterator[Evaluation]:
    """Score a baseline's kNN-LM on the texts that the baseline was scored on.

    Every process does the same: they share the shards of the datastore and of the searches, each with the whole model
    on its device, and the rest is short.

    Args:
        config: Of the run.
        folder: Of the baseline.
        inputs: The texts, and the database.
        own: The baseline's own score on each text.
        known: Scores that need not be measured again.

    Yields:
        The score on each text, once each chunk's share is written.

    Raises:
        ConfigurationError: k is larger than the database, or alpha has to be given.
        DivergenceError: The baseline's hidden states are not finite.
    """
    given = config.evaluation.knn_lm
    reader = Reader(
        folder=folder,
        width=config.size.width,
        precision=checked_precision(config.trainer.get("precision"), str(config.trainer.get("accelerator", "auto"))),
        sequence_length=config.data.sequence_length,
        stride=config.evaluation.stride,
        batch_size=config.evaluation.batch_size,
        document_masks=config.model.document_masks,
    )
    datastore = inputs.datastore(reader)
    interpolation, alpha, tuned_on = given.interpolation, given.alpha, None
    if interpolation is None or alpha is None:
        validation = inputs.corpus.stores["validation"]
        interpolation, alpha = tune(datastore.evidence_of(validation, reader.stride), given, datastore.first_alpha)
        tuned_on = validation.artifact.fingerprint
        console.status(
            "kNN-LM", f"lambda = {interpolation:.3g} and alpha = {alpha:.3g} are best on the validation split"
        )
    for text, entry in own.items():
        knn = KnnLm(
            k=given.k,
            interpolation=interpolation,
            alpha=alpha,
            datastore=f"{datastore.states.chunks:,} tokens of {inputs.database_corpus.name} "
            f"({datastore.index.facts.factory})",
            neighbors=datastore.neighbors_of(text.store, text.stride).artifact.fingerprint,
            tuned_on=tuned_on,
        )
        name = scores_name(entry.text, 0, None, knn)
        measured = known.get((entry.text, 0, None, knn))
        if measured is None:
            nats = datastore.evidence_of(text.store, text.stride).mixed_nats(interpolation, alpha)
            windows = datastore.windows(text.store, text.stride)
            found = score(windows, nats)
            chunks = windows.chunk_scores(found)
            level = chunks.bits_per_byte()
            assert level is not None
            if console.is_main_process():
                write_chunk_scores(folder / name, chunks)
            measured = replace(
                entry, knn=knn, bits_per_byte=level, perplexity=found.perplexity, accuracy=None, scores=name
            )
        yield measured
