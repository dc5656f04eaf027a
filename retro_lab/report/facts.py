"""Tables of facts about the models of a run: their training data, their parts, and their provenance."""

from collections.abc import Callable

from retro_lab.report import formats
from retro_lab.report.tables import Column, Table, Value
from retro_lab.runs.folder import BASELINE, LONGER_BASELINE, RETRO
from retro_lab.runs.records import DroppedDocuments, ModelRecord, RunRecord

NAMES = {BASELINE: "Baseline", LONGER_BASELINE: "Baseline, same FLOPs", RETRO: "RETRO"}
Fact = Callable[[ModelRecord], Value]

TRAINING: dict[str, Fact] = {
    "Size": lambda model: model.size,
    "Corpus": lambda model: model.corpus.source,
    "Training split": lambda model: _text(model.corpus.train_tokens, model.corpus.train_documents),
    "Validation split": lambda model: _text(model.corpus.validation_tokens, model.corpus.validation_documents),
    "Test split": lambda model: _text(model.corpus.test_tokens, model.corpus.test_documents),
    "Near-copies among training documents": lambda model: _dropped(model.corpus.deduplicated),
    "Near-copies of held-out documents": lambda model: _dropped(model.corpus.decontaminated),
    "Nearest training document": lambda model: _nearest(model),
    "Trained on": lambda model: _trained(model),
    "Passes over the training split": lambda model: _passes(model),
    "Training FLOPs": lambda model: formats.flops(model.flops),
    "FLOPs per byte": lambda model: _flops_per_byte(model),
    "Neighbors per chunk (k)": lambda model: str(model.k),
    "Retrieval database": lambda model: _database(model),
    "Index": lambda model: model.database.index if model.database else None,
    "Chunks with neighbors": lambda model: (
        formats.share(model.database.chunks_with_neighbors) if model.database else None
    ),
    "Scored text": lambda model: _scored(model),
}
PARAMETERS: dict[str, Fact] = {
    "Decoder": lambda model: f"{model.parameters.decoder:,}",
    "Chunked cross-attention": lambda model: f"{model.parameters.chunked_cross_attention:,}",
    "Neighbor encoder": lambda model: f"{model.parameters.encoder:,}",
    "Embeddings": lambda model: f"{model.parameters.embeddings:,}",
    "All but embeddings": lambda model: f"{model.parameters.non_embedding:,}",
    "Total": lambda model: f"{model.parameters.total:,}",
}
PROVENANCE: dict[str, Fact] = {
    "Command": lambda model: model.provenance.command,
    "Date": lambda model: model.provenance.date,
    "Hardware": lambda model: model.provenance.hardware,
    "Commit": lambda model: model.provenance.commit,
    "Training time": lambda model: formats.duration(model.seconds),
    "Seed": lambda model: str(model.seed),
    "Versions": lambda model: ", ".join(f"{name} {version}" for name, version in model.provenance.versions.items()),
}


def training_table(run: RunRecord) -> Table:
    """List each model's training data, database and scored text."""
    return _facts("Training and data", run, TRAINING, numeric=False)


def parameter_table(run: RunRecord) -> Table:
    """Split the parameters by part."""
    return _facts("Parameters", run, PARAMETERS, numeric=True)


def provenance_table(run: RunRecord) -> Table:
    """List how the results came about."""
    return _facts("Provenance", run, PROVENANCE, numeric=False)


def _facts(title: str, run: RunRecord, facts: dict[str, Fact], *, numeric: bool) -> Table:
    models = {model.model: model for model in run.models}
    columns = [Column("fact", "", numeric=False)]
    columns += [Column(name, NAMES[name], numeric=numeric) for name in models]
    rows = tuple((name, *(fact(model) for model in models.values())) for name, fact in facts.items())
    return Table(title, tuple(columns), rows)


def _text(tokens: int, documents: int) -> str:
    return f"{formats.count(tokens)} tokens, {documents:,} documents"


def _dropped(found: DroppedDocuments | None) -> str:
    if found is None:
        return "kept"
    return f"{found.documents:,} documents dropped, from a similarity of {found.similarity:g} on"


def _nearest(model: ModelRecord) -> Value:
    """Say how similar the nearest training document is to held-out ones, in shared 13-grams of words."""
    found = model.corpus.nearest_training_document
    return (
        "; ".join(
            f"{split} split: median similarity {nearest.median:.2f}, largest {nearest.largest:.2f}"
            for split, nearest in found.items()
        )
        or None
    )


def _trained(model: ModelRecord) -> Value:
    if not model.is_trained:
        return "base model, not trained"
    stopped = f" ({model.stop})" if model.stop else ""
    return f"{formats.count(model.tokens)} tokens, including padding of last chunks, in {model.steps:,} steps{stopped}"


def _passes(model: ModelRecord) -> Value:
    passes = model.tokens / model.corpus.train_tokens if model.corpus.train_tokens else 0
    return f"{passes:.2g}" if passes else None


def _flops_per_byte(model: ModelRecord) -> Value:
    entry = model.evaluation(model.k)
    return f"{formats.flops(entry.flops_per_byte)} ({entry.text.description}, k = {entry.k})" if entry else None


def _database(model: ModelRecord) -> Value:
    if model.database is None:
        return None
    size = f"{formats.count(model.database.chunks)} chunks, {formats.count(model.database.tokens)} tokens"
    return f"{size} ({formats.share(model.database.fraction)} of the training split of {model.database.corpus})"


def _scored(model: ModelRecord) -> Value:
    """Say how much of each text was scored."""
    entries = {entry.text: entry for entry in model.evaluations}
    scored = [
        f"{text.description}: {_text(entry.tokens, entry.documents)}, {entry.bytes:,} bytes"
        for text, entry in entries.items()
    ]
    return "; ".join(scored) or None
