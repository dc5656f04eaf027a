"""The range of each setting, checked before anything is built.

The command line checks names, types and the seed; sizes and choices of the model are checked in
`retro_lab.model.validation`, those of a corpus by its source.
"""

import math
from collections.abc import Callable, Iterator

from omegaconf import DictConfig, ListConfig, OmegaConf

from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.searchers import METHODS
from retro_lab.retrieval.sequences import VALUES, check_length

Rule = tuple[Callable[[float], bool], str]
POSITIVE: Rule = (lambda value: value > 0, "must be positive")
NOT_NEGATIVE: Rule = (lambda value: value >= 0, "must be 0 or more")
SHARE: Rule = (lambda value: 0 < value <= 1, "is a share, above 0 and up to 1")
RATIO: Rule = (lambda value: 0 <= value <= 1, "is a share, from 0 to 1")
DECAY: Rule = (lambda value: 0 <= value < 1, "is a rate of decay, at least 0 and below 1")
SEED: Rule = (lambda value: 0 <= value < 2**32, "must be from 0 to 4,294,967,295")
RANGES: dict[str, Rule] = {
    "data.sequence_length": POSITIVE,
    "data.batch_size": POSITIVE,
    "data.overfit_batches": POSITIVE,
    "data.workers": NOT_NEGATIVE,
    "optimizer.lr": POSITIVE,
    "optimizer.betas": DECAY,
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "schedule.tokens": POSITIVE,
    "schedule.warmup_steps": NOT_NEGATIVE,
    "schedule.warmup_start": NOT_NEGATIVE,
    "schedule.final_ratio": RATIO,
    "schedule.gradient_clip": NOT_NEGATIVE,
    "evaluation.neighbors": NOT_NEGATIVE,
    "evaluation.stride": POSITIVE,
    "evaluation.batch_size": POSITIVE,
    "evaluation.curve_points": NOT_NEGATIVE,
    "evaluation.curve_tokens": POSITIVE,
    "retrieval.k": NOT_NEGATIVE,
    "retrieval.stored": POSITIVE,
    "retrieval.candidates": POSITIVE,
    "retrieval.bm25_k1": NOT_NEGATIVE,
    "retrieval.bm25_b": RATIO,
    "database.fraction": SHARE,
    "database.fractions": SHARE,
    "database.tokens": POSITIVE,
    "database.seed": SEED,
    "embedder.max_length": POSITIVE,
    "embedder.batch_size": POSITIVE,
    "embedder.shard_size": POSITIVE,
    "index.exact_below": NOT_NEGATIVE,
    "index.recall": SHARE,
    "index.max_bytes": POSITIVE,
    "index.training_vectors": POSITIVE,
    "index.query_batch": POSITIVE,
    "task.embedding_chunks_per_second": POSITIVE,
    "task.embedding_width": POSITIVE,
    "task.queries_per_second": POSITIVE,
    "task.tokens_per_document": POSITIVE,
    "task.index_memory": POSITIVE,
    "task.peak_tflops": POSITIVE,
    "task.utilisation": SHARE,
}
"""Range of each setting that is a finite number, or a list of them; those that are null or not there are left alone."""
CHOICES = {"retrieval.value": VALUES, "retrieval.method": METHODS}


def check_values(config: DictConfig) -> None:
    """Check each value by itself, and the lengths that all tasks share.

    Raises:
        ConfigurationError: A value is out of its range, or lengths do not fit together.
    """
    for key, (holds, wanted) in RANGES.items():
        for value in _numbers(config, key):
            if not math.isfinite(value):
                raise ConfigurationError(f"{key} must be a finite number, not {value}.")
            if not holds(value):
                raise ConfigurationError(f"{key} {wanted}, not {value}.")
    for key, choices in CHOICES.items():
        if (value := OmegaConf.select(config, key)) not in choices:
            raise ConfigurationError(f"{key}={value} is not one of {', '.join(choices)}.")
    length, chunk_length = config.data.sequence_length, config.model.chunk_length
    if chunk_length < 1:
        raise ConfigurationError(f"model.chunk_length must be a positive whole number, not {chunk_length}.")
    check_length(length, chunk_length)


def _numbers(config: DictConfig, key: str) -> Iterator[float]:
    value = OmegaConf.select(config, key)
    for number in value if isinstance(value, ListConfig) else [value]:
        if isinstance(number, int | float):
            yield number
