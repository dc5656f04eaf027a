"""The record of a trained model (what it is, what it was trained on, how it scored) and all records of a run."""

import json
import math
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from retro_lab.artifacts.disk import write_file
from retro_lab.artifacts.fingerprint import fingerprint
from retro_lab.errors import ArtifactError
from retro_lab.runs.chunk_scores import ChunkScores, load_chunk_scores
from retro_lab.runs.folder import BASELINE, FAILURE_NAME, LONGER_BASELINE, MODELS, RETRO

RESULT_NAME = "result.json"
SCORES_FOLDER = "scores"
LARGEST_EXPONENT = math.log(sys.float_info.max)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters by part, trained or frozen; `non_embedding` is the count of the paper's Table 2."""

    decoder: int
    chunked_cross_attention: int
    encoder: int
    embeddings: int
    non_embedding: int
    total: int


@dataclass(frozen=True, kw_only=True)
class DroppedDocuments:
    """Training documents that were dropped for their Jaccard similarity to others."""

    documents: int
    similarity: float
    """Similarity from which on they were dropped."""


@dataclass(frozen=True, kw_only=True)
class NearestTrainingDocument:
    """Similarity of the nearest training document to each document of a held-out split: its median and largest."""

    median: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """The corpus that a model was trained and evaluated on."""

    source: str
    train_tokens: int
    train_documents: int
    validation_tokens: int
    validation_documents: int
    test_tokens: int
    test_documents: int
    deduplicated: DroppedDocuments | None
    """Near-copies of other training documents; None if they were kept."""
    decontaminated: DroppedDocuments | None
    """Near-copies of held-out documents; None if they were kept."""
    nearest_training_document: dict[str, NearestTrainingDocument]
    """By held-out split; empty without decontamination."""


@dataclass(frozen=True, kw_only=True)
class DatabaseSummary:
    """The retrieval database; `fraction` is its share of the training split of `corpus`, and `index` is the FAISS
    factory string, or the name of another search method.
    """

    corpus: str
    chunks: int
    tokens: int
    fraction: float
    index: str
    chunks_with_neighbors: float
    """Share of the training chunks that have at least one neighbor."""
    training_overlaps: dict[str, float]
    """Share of the training chunks with r(C) of at least so much (`retro_lab.retrieval.overlaps`)."""
    flops: float | None
    """FLOPs to embed its chunks and the training chunks, and to find the neighbors of the latter; None if not known."""


@dataclass(frozen=True, kw_only=True)
class ScoredText:
    """A text and its scoring windows: two models' scores can be compared if these are the same."""

    name: str
    """As in `evaluation.datasets`."""
    description: str
    """What the text is, in words."""
    altered_documents: int
    """Documents that the tokenizer does not reproduce; their bits per byte are too low."""
    tokens: str
    """Fingerprint of its tokens."""
    sequence_length: int
    """Tokens of a window."""
    stride: int
    """Tokens from one window to the next."""


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """The neighbors that a text was scored with.

    The first three fields identify them; the others describe what the fingerprints stand for, and an earlier release
    did not write them.
    """

    database: str
    """What the database is, in words."""
    source: str
    """Fingerprint of the tokens in the database."""
    neighbors: str
    """Fingerprint of the neighbors, which depend on database, index and search."""
    chunks: int | None = field(default=None, compare=False)
    """Chunks in the database."""
    tokens: int | None = field(default=None, compare=False)
    """Tokens in them, without padding."""
    share: float = field(default=1.0, compare=False)
    """Share of the run's database that could be retrieved: its first documents, or a random part."""
    seed: int | None = field(default=None, compare=False)
    """Seed of a random part; else None."""
    unit: str | None = field(default=None, compare=False)
    """What a random part keeps or leaves out, `chunk` or `document`; else None."""
    filter: str | None = field(default=None, compare=False)
    """Name of the filter that dropped neighbors; None without one."""
    complete: float = field(default=1.0, compare=False)
    """Share of the text's chunks that read the k nearest of a random part, or of those that a filter leaves: for the
    others the stored neighbors did not suffice."""
    complete_above: float | None = field(default=None, compare=False)
    """Share above which a random part of this seed is complete for every chunk; None for others."""

    @property
    def is_whole(self) -> bool:
        """Whether all of a database's neighbors could be retrieved, rather than those of a part or of a filter."""
        return self.share == 1 and self.seed is None and self.filter is None


@dataclass(frozen=True, kw_only=True)
class KnnLm:
    """The neighbors of each token that a baseline's probabilities were mixed with (`retro_lab.evaluation.knn_lm`)."""

    k: int
    """Neighbors of each token."""
    interpolation: float
    """Weight lambda of the neighbors' distribution."""
    alpha: float
    """How fast the weight of a neighbor falls with its squared distance."""
    datastore: str
    """What the datastore is, in words."""
    neighbors: str
    """Fingerprint of the neighbors, which depend on the model, the database and the search."""
    tuned_on: str | None
    """Fingerprint of the tokens that `interpolation` or `alpha` were tuned on; None if both were given."""


Measured = tuple[ScoredText, int, Retrieved | None, KnnLm | None]
"""A text, neighbors of each chunk and which, and neighbors of each token: what a score is of."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores on a text with k neighbors for each chunk; 0 is RETRO[Off], or the baseline.

    `text`, `k`, `retrieved` and `knn` say what was measured; a model has one evaluation for each combination.
    """

    text: ScoredText
    k: int
    retrieved: Retrieved | None
    """None without neighbors."""
    knn: KnnLm | None = None
    """Of a kNN-LM over a baseline; None for what the model predicts alone."""
    bits_per_byte: float
    perplexity: float
    """Per token, so only models with the same tokenizer can be compared."""
    tokens: int
    bytes: int
    documents: int
    words: int | None = None
    """Words of the scored text, divided by spaces and line ends; the end of each line is one too in WikiText, as in its
    published perplexities. None in records of earlier releases."""
    accuracy: float | None = None
    """Share of the documents of which every scored token is the most probable one, given the true ones before it; None
    if the text does not ask for it."""
    flops_per_byte: float
    """FLOPs that the model takes for the text, over its bytes: those of the mean token of a window for each token. That
    windows overlap is left out, as `stride` decides it and not the model."""
    scores: str
    """File with each chunk's share of them, in the model's folder (`retro_lab.runs.chunk_scores`)."""

    @property
    def measured(self) -> Measured:
        """What was measured; evaluations that differ in this never replace each other."""
        return self.text, self.k, self.retrieved, self.knn

    def metric(self, name: str) -> str:
        """Return what loggers call one of its numbers."""
        return f"{self.text.name}/{name}/{'knn_lm' if self.knn else f'k={self.k}'}"

    @property
    def word_perplexity(self) -> float | None:
        """Exponential of the mean cross-entropy of a word, which does not depend on the tokenizer; None if not known.

        It is not a number that helps where text has hardly any spaces, so None stands for one too large for a float.
        """
        if not self.words:
            return None
        nats = self.bits_per_byte * math.log(2) * self.bytes / self.words
        return math.exp(nats) if nats < LARGEST_EXPONENT else None


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Held-out bits per byte after `tokens` training tokens, on a sample of the held-out text."""

    tokens: int
    k: int
    bits_per_byte: float


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a result came about, enough to reproduce it; `date` is ISO 8601, `versions` maps library to version."""

    command: str
    date: str
    hardware: str
    commit: str | None = None
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """One trained model: what it is, what it was trained on, and how it scored."""

    model: str
    """Its name, one of `retro_lab.runs.folder.MODELS`."""
    size: str
    k: int
    """Neighbors per chunk in training; 0 for the baseline."""
    parameters: Parameters
    tokens: int
    """Tokens seen in training, including the padding of documents' last chunks."""
    steps: int
    """Steps actually taken."""
    planned_steps: int | None = None
    """Planned steps of a training run that was stopped early; else None."""
    stopped: str | None = None
    """What stopped it, such as the name of a callback."""
    skipped_steps: int = 0
    """Steps that changed no weights, because their loss or gradient was not finite."""
    flops: float
    """FLOPs of the training: three times those of the forward passes, as if all weights were trained."""
    seconds: float
    """Wall time of the training over all attempts."""
    seed: int
    corpus: CorpusSummary
    database: DatabaseSummary | None = None
    evaluations: tuple[Evaluation, ...]
    curve: tuple[CurvePoint, ...]
    provenance: Provenance

    @property
    def is_trained(self) -> bool:
        """Whether it was trained here, rather than taken as a pretrained base is."""
        return self.steps > 0

    @property
    def stop(self) -> str | None:
        """Say what stopped the training early, and when; None if it was not stopped."""
        if self.planned_steps is None:
            return None
        return f"stopped by {self.stopped} after {self.steps:,} of {self.planned_steps:,} steps"

    @property
    def texts(self) -> tuple[ScoredText, ...]:
        """The texts that the model was scored on, in the order requested."""
        return tuple(dict.fromkeys(entry.text for entry in self.evaluations))

    @property
    def main_text(self) -> ScoredText | None:
        """The first text; its scores are the model's main scores."""
        return next(iter(self.texts), None)

    def evaluation(self, k: int, text: ScoredText | None = None) -> Evaluation | None:
        """Return the scores with k neighbors on a text, by default the main one; None if they were not measured.

        Neighbors are those of a whole database, and those of a kNN-LM are not the model's own.
        """
        text = text or self.main_text
        found = (entry for entry in self.evaluations if (entry.k, entry.text, entry.knn) == (k, text, None))
        return next((entry for entry in found if entry.retrieved is None or entry.retrieved.is_whole), None)

    def to_json(self) -> str:
        """Return the record as JSON text.

        Raises:
            ValueError: A number is not finite, which JSON cannot express.
        """
        text = json.dumps(asdict(self), indent=1, allow_nan=False, ensure_ascii=False)
        # Command lines and file names can hold bytes that are not valid text; Python keeps them as lone surrogates,
        # which UTF-8 cannot encode.
        return re.sub("[\ud800-\udfff]", lambda lone: f"\\\\u{ord(lone[0]):04x}", text)

    @classmethod
    def from_json(cls, text: str) -> "ModelRecord":
        """Read a record from JSON text; fields that this release does not know are ignored.

        Raises:
            ValueError: The text is not JSON, or a field is missing or of another type.
        """
        try:
            return RECORD.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'the record'}: {first['msg']}") from error


# JSON has no NaN or infinity, but some writers write them anyway.
ModelRecord.__pydantic_config__ = ConfigDict(allow_inf_nan=False)  # type: ignore[attr-defined]
RECORD = TypeAdapter(ModelRecord)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything recorded in a run folder."""

    name: str
    folder: Path
    baseline: ModelRecord | None = None
    longer_baseline: ModelRecord | None = None
    """Trained with RETRO's training FLOPs rather than on its tokens."""
    retro: ModelRecord | None = None
    unfinished: tuple[str, ...] = ()
    """Models that have a folder but no result: in training, or killed."""
    error: str | None = None
    """Why the run failed, from `failed.json`."""

    @property
    def models(self) -> tuple[ModelRecord, ...]:
        """Return the finished models, baselines first."""
        models = (self.baseline, self.longer_baseline, self.retro)
        return tuple(model for model in models if model is not None)

    def chunk_scores(self, model: ModelRecord, entry: Evaluation) -> ChunkScores:
        """Read each chunk's share in a score of one of the models.

        Raises:
            ArtifactError: Their file is not there, is damaged, or does not add up to the score.
        """
        return _chunk_scores(self.folder / model.model / entry.scores, entry)


def scores_name(text: ScoredText, k: int, retrieved: Retrieved | None, knn: KnnLm | None = None) -> str:
    """Return the name of the file of chunks' scores in a model's folder, one for all that can be measured."""
    identifying = ("database", "source", "neighbors")
    found = {name: getattr(retrieved, name) for name in identifying} if retrieved else None
    measured = {"text": asdict(text), "k": k, "retrieved": found}
    if knn:
        measured["knn"] = asdict(knn)
    return f"{SCORES_FOLDER}/{fingerprint(measured)}.parquet"


def write_result(path: Path, record: ModelRecord) -> None:
    """Write `record` to `path` atomically.

    Raises:
        ArtifactError: The file cannot be written.
    """
    write_file(path, record.to_json().encode("utf-8"))


def load_result(path: Path) -> ModelRecord:
    """Read the record at `path`.

    Raises:
        ArtifactError: The file cannot be read, is cut short, or is not a record.
    """
    try:
        return ModelRecord.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not a whole result ({error}); delete it and run the command that made it again."
        ) from error


def load_run(folder: Path) -> RunRecord:
    """Read the run in `folder`; unfinished models are only named.

    Raises:
        ArtifactError: A result is damaged, or the chunks' scores beside it are.
    """
    found = {name: folder / name / RESULT_NAME for name in MODELS if (folder / name).is_dir()}
    records = {name: load_result(path) for name, path in found.items() if path.is_file()}
    for name, record in records.items():
        for entry in record.evaluations:  # read again where they are needed: all of a sweep's would fill the memory
            _chunk_scores(folder / name / entry.scores, entry)
    return RunRecord(
        name=folder.resolve().name,
        folder=folder,
        baseline=records.get(BASELINE),
        longer_baseline=records.get(LONGER_BASELINE),
        retro=records.get(RETRO),
        unfinished=tuple(name for name in found if name not in records),
        error=_load_error(folder / FAILURE_NAME),
    )


def _chunk_scores(path: Path, entry: Evaluation) -> ChunkScores:
    try:
        scores = load_chunk_scores(path)
        counted = (scores.documents, scores.tokens.sum(), scores.bytes.sum())
        level = scores.bits_per_byte() or 0.0
        if counted != (entry.documents, entry.tokens, entry.bytes) or not math.isclose(level, entry.bits_per_byte):
            raise ValueError("they do not add up to the score of the whole text")
        if scores.accuracy != entry.accuracy:
            raise ValueError("their accuracy is not that of the whole text")
        if (scores.overlap is None) != (entry.retrieved is None):
            raise ValueError("chunks have an overlap if and only if something was retrieved for them")
    except ValueError as error:
        raise ArtifactError(
            f"{path} does not hold the chunks' scores ({error}); delete it and run the command that made it again."
        ) from error
    return scores


def _load_error(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"failed, and {path} cannot be read ({error})"
