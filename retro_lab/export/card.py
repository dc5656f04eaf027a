"""The model card of an exported model: what it is, how it scored, what it was trained on, from the run's record."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from retro_lab.runs.records import ModelRecord
from retro_lab.runs.trained_model import ModelSettings

TEMPLATE = Path(__file__).with_name("model_card.md")


def model_card(name: str, record: ModelRecord, settings: ModelSettings) -> str:
    """Return the text of README.md.

    Args:
        name: Of the model, as the card calls it.
        record: Of the model's training and scores.
        settings: Of the model.
    """
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=entry.text.name,
            dataset_name=entry.text.description,
            metric_type="bits_per_byte",
            metric_name=f"bits per byte, k={entry.k}",
            metric_value=entry.bits_per_byte,
        )
        for entry in record.evaluations
        if entry.knn is None and (entry.retrieved is None or entry.retrieved.is_whole)
    ]
    backbone = settings.backbone
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["retro_lab", "retro", "retrieval"],
        base_model=backbone.model if backbone and backbone.commit else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        summary=_summary(record, settings),
        retrieval=_retrieval(settings),
        scores=[[_cell(value) for value in row] for row in _scores(record)],
        windows=settings.sequence_length if record.main_text is None else record.main_text.sequence_length,
        facts=[[_cell(value) for value in row] for row in [*_base(settings), *_facts(record)]],
        command=" ".join(record.provenance.command.splitlines()),
        limitations=_limitations(record, settings),
    )
    return str(card)


def _summary(record: ModelRecord, settings: ModelSettings) -> str:
    size = f"{record.parameters.total:,} parameters ({record.parameters.non_embedding:,} without embeddings)"
    backbone = settings.backbone
    if backbone is not None and not settings.k:
        trained = "as it is" if backbone.frozen else "trained further with retro_lab"
        return f"The pretrained model {backbone.short_name}, {trained}, the baseline of a RETROfit: {size}."
    if backbone is not None:
        weights = "left as they are" if backbone.frozen else "trained further"
        return (
            f"A RETROfit ([Borgeaud et al. 2022](https://arxiv.org/abs/2112.04426)) of {backbone.short_name}, made "
            f"with retro_lab: that model, its weights {weights}, with an encoder of neighbors and chunked "
            f"cross-attention, {size}, {settings.k} neighbors for each chunk of {settings.model.chunk_length} tokens."
        )
    if not settings.k:
        return f"A decoder without retrieval, the baseline of a RETRO, trained with retro_lab: {size}."
    return (
        "A retrieval-enhanced language model (RETRO, [Borgeaud et al. 2022](https://arxiv.org/abs/2112.04426)), "
        f"trained with retro_lab: {size}, {settings.k} neighbors for each chunk of "
        f"{settings.model.chunk_length} tokens."
    )


def _retrieval(settings: ModelSettings) -> str:
    if not settings.k:
        return "The model takes no neighbors."
    return (
        "This generates without neighbors, which is RETRO[Off]. The database is not a part of the folder: give "
        "`generate` a function that searches one, `retrieve=...`, or neighbors, `neighbors=...`, "
        "`neighbor_lengths=...`."
    )


def _scores(record: ModelRecord) -> list[tuple[str, str, str, str]]:
    rows = []
    for entry in record.evaluations:
        if entry.knn is not None:
            continue
        source = "nothing" if entry.retrieved is None else entry.retrieved.database
        if entry.retrieved is not None and not entry.retrieved.is_whole:
            filtered = f", {entry.retrieved.filter}" if entry.retrieved.filter else ""
            source += f" ({entry.retrieved.share:.2%} of it{filtered})"
        rows.append((entry.text.description, str(entry.k), source, f"{entry.bits_per_byte:.4f}"))
    return rows


def _base(settings: ModelSettings) -> list[tuple[str, str]]:
    backbone = settings.backbone
    if backbone is None:
        return []
    commit = f", commit {backbone.commit}" if backbone.commit else ""
    return [
        ("base", f"{backbone.short_name}{commit}, weights with the SHA-256 {backbone.sha256}"),
        ("license", "that of the base holds for its weights, which are in this folder"),
    ]


def _facts(record: ModelRecord) -> list[tuple[str, str]]:
    corpus, origin = record.corpus, record.provenance
    facts = [
        ("data", f"{corpus.source}: {corpus.train_tokens:,} tokens in {corpus.train_documents:,} documents"),
        ("seen in training", f"{record.tokens:,} tokens in {record.steps:,} steps, seed {record.seed}"),
    ]
    if record.stop:
        facts.append(("stopped early", record.stop))
    for kind, dropped in (("of each other", corpus.deduplicated), ("of held-out documents", corpus.decontaminated)):
        count = "were kept" if dropped is None else f"{dropped.documents:,} dropped from {dropped.similarity} on"
        facts.append((f"near-copies {kind}", count))
    if record.database is not None:
        base = record.database
        facts.append(
            ("database", f"{base.chunks:,} chunks of {base.corpus} ({base.tokens:,} tokens), index {base.index}")
        )
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    facts += [
        ("date", origin.date),
        ("hardware", origin.hardware),
        ("commit", origin.commit or "unknown"),
        ("versions", versions),
    ]
    return facts


def _limitations(record: ModelRecord, settings: ModelSettings) -> list[str]:
    found = [
        f"It was trained on sequences of {settings.sequence_length} tokens; what is longer it has not seen.",
        "It continues text. It was not tuned to follow instructions, and nothing was done about false, private or "
        "offensive text.",
        "What it knows, and in which languages, is what is in its training data.",
    ]
    if settings.k:
        found.append(
            "With neighbors it can copy from its database, and its scores depend on how much of the scored text is in "
            "there: the run's report has the gain by overlap."
        )
    if any(text.altered_documents for text in record.texts):
        found.append("Its tokenizer does not reproduce every text, so some bits per byte are too low.")
    return found


def _cell(text: str) -> str:
    """Return text as it can stand in a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
