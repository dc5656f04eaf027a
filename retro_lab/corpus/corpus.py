"""A corpus as tokens of each split: models train on it, retrieve from it, and are scored on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retro_lab import console
from retro_lab.artifacts.stage import Artifact
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.decontamination import DecontaminationFacts, DecontaminationStage, HeldOutStage, Nearest
from retro_lab.corpus.deduplication import DeduplicationFacts, DeduplicationStage
from retro_lab.corpus.documents import HELD_OUT, SPLITS, DocumentSource, Split
from retro_lab.corpus.documents_stage import DocumentsFacts, DocumentsStage
from retro_lab.corpus.filtering import Dropped
from retro_lab.corpus.near_copies import NearCopiesStage
from retro_lab.corpus.tokenizer import TokenizerRecipe
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage, TokenStore
from retro_lab.errors import ConfigurationError


@dataclass(frozen=True)
class Corpus:
    """The documents of a source and their tokens."""

    name: str
    """Name in reports."""
    documents: Artifact
    """Documents of all splits, without training documents that nearly duplicate others or held-out ones."""
    tokenizer: Artifact
    lossy: bool
    """Whether the tokenizer may lose text."""
    stores: Mapping[Split, TokenStore]
    """Tokens of each split that was built."""

    @property
    def deduplicated(self) -> Dropped | None:
        """What deduplication dropped; None if it was off."""
        if "deduplication" not in self.documents.facts:
            return None
        return self.documents.read_facts(DeduplicationFacts).deduplication

    @property
    def decontaminated(self) -> Dropped | None:
        """What decontamination dropped; None if it was off."""
        return self._decontamination.decontamination if self._decontamination else None

    @property
    def nearest(self) -> Mapping[Split, Nearest]:
        """How similar training documents are to those of each held-out split; empty without decontamination."""
        return self._decontamination.nearest if self._decontamination else {}

    @property
    def _decontamination(self) -> DecontaminationFacts | None:
        return self.documents.read_facts(DecontaminationFacts) if "decontamination" in self.documents.facts else None


def build_corpus(
    artifacts: ArtifactStore,
    source: DocumentSource,
    recipe: TokenizerRecipe,
    *,
    name: str,
    deduplication: float | None,
    decontamination: float | None,
    chunk_length: int,
    seed: int,
) -> Corpus:
    """Build documents, tokenizer and the tokens of all splits; existing artifacts are reused.

    Args:
        artifacts: Where artifacts are kept.
        source: Source of the documents.
        recipe: How to make the tokenizer, which may learn from the training documents.
        name: Name of the corpus in reports.
        deduplication: Jaccard similarity to an earlier training document at which one is dropped; None keeps all.
        decontamination: The same for the similarity to a held-out document.
        chunk_length: Tokens in a chunk; each document begins a new one.
        seed: Seed of the documents' order.

    Raises:
        ConfigurationError: A similarity is out of range, or held-out documents do not decode to their text.
        CorpusError: The source cannot be read, or a split has no documents.
    """
    _check_splits(source, SPLITS, name)
    documents = read = _build_documents(artifacts, source)
    if deduplication is not None:
        documents = _deduplicate(artifacts, documents, deduplication)
    if decontamination is not None:
        documents = _decontaminate(artifacts, documents, read, decontamination)
    tokenizer = artifacts.build(TokenizerStage(recipe, documents))
    stores = _build_stores(artifacts, documents, tokenizer, recipe.lossy, SPLITS, chunk_length, seed)
    return Corpus(name, documents, tokenizer, recipe.lossy, stores)


def build_other_corpus(
    artifacts: ArtifactStore,
    source: DocumentSource,
    like: Corpus,
    *,
    name: str,
    deduplication: float | None,
    decontamination: float | None,
    chunk_length: int,
    seed: int,
    splits: Sequence[Split] = SPLITS,
) -> Corpus:
    """Build another corpus with the tokenizer of `like`, to retrieve from or to score models on.

    With decontamination, its training split contains no document that nearly duplicates a held-out one of this corpus
    or of `like`. Tokens are built for `splits` only; the other arguments are those of `build_corpus`.

    Raises:
        ConfigurationError: A similarity is out of range, or held-out documents do not decode to their text.
        CorpusError: The source cannot be read, or a split has no documents.
    """
    _check_splits(source, splits, name)
    documents = read = _build_documents(artifacts, source)
    if deduplication is not None and "train" in splits:
        documents = _deduplicate(artifacts, documents, deduplication)
    if decontamination is not None and "train" in splits:
        for held_out in (read, like.documents):
            documents = _decontaminate(artifacts, documents, held_out, decontamination)
    stores = _build_stores(artifacts, documents, like.tokenizer, like.lossy, splits, chunk_length, seed)
    return Corpus(name, documents, like.tokenizer, like.lossy, stores)


def _check_splits(source: DocumentSource, wanted: Sequence[Split], name: str) -> None:
    """Refuse to train on or to retrieve from what is only there to be scored."""
    missing = [split for split in wanted if split not in source.splits]
    if missing:
        raise ConfigurationError(
            f"The corpus {name} has no {missing[0]} split: its documents are there to be scored; name it in "
            "evaluation.datasets, and train on and retrieve from another one."
        )


def _build_documents(artifacts: ArtifactStore, source: DocumentSource) -> Artifact:
    """Build the documents of a source, and report what was skipped."""
    documents = artifacts.build(DocumentsStage(source))
    facts = documents.read_facts(DocumentsFacts)
    if facts.rejected:
        counts = ", ".join(f"{count} {reason}" for reason, count in facts.rejected.items())
        console.status("documents", f"skipped {counts}, such as {facts.rejected_examples[0]}")
    return documents


def _deduplicate(artifacts: ArtifactStore, documents: Artifact, similarity: float) -> Artifact:
    """Drop training documents that nearly duplicate earlier ones, and report how many."""
    near_copies = artifacts.build(NearCopiesStage(documents, similarity))
    kept = artifacts.build(DeduplicationStage(documents, near_copies))
    _report_dropped("deduplication", kept.read_facts(DeduplicationFacts).deduplication, "others")
    return kept


def _decontaminate(artifacts: ArtifactStore, documents: Artifact, others: Artifact, similarity: float) -> Artifact:
    """Drop training documents that nearly duplicate held-out ones of `others`, and report how many."""
    held_out = artifacts.build(HeldOutStage(others))
    clean = artifacts.build(DecontaminationStage(documents, held_out, similarity))
    _report_dropped("decontamination", clean.read_facts(DecontaminationFacts).decontamination, "held-out ones")
    return clean


def _report_dropped(stage: str, found: Dropped, others: str) -> None:
    if found.dropped:
        console.status(
            stage,
            f"dropped {found.dropped['documents']:,} training documents that nearly duplicate {others}, such as "
            f"{found.examples[0]}",
        )


def _build_stores(
    artifacts: ArtifactStore,
    documents: Artifact,
    tokenizer: Artifact,
    lossy: bool,
    splits: Sequence[Split],
    chunk_length: int,
    seed: int,
) -> dict[Split, TokenStore]:
    """Encode splits, held-out ones first, as they show whether the tokenizer can be used."""
    stores: dict[Split, TokenStore] = {}
    for split in sorted(splits, key=lambda split: split not in HELD_OUT):
        stage = TokensStage(documents, tokenizer, split, chunk_length, seed)
        stores[split] = TokenStore(artifacts.build(stage), tokenizer)
        if split in HELD_OUT:
            check_round_trip(stores[split], lossy)
    return {split: stores[split] for split in SPLITS if split in stores}


def check_round_trip(held_out: TokenStore, lossy: bool) -> None:
    """Refuse a tokenizer that loses text of held-out documents, unless it may be `lossy`.

    Raises:
        ConfigurationError: A held-out document does not decode to its text.
    """
    facts = held_out.facts
    if facts.altered and not lossy:
        raise ConfigurationError(
            f"The tokenizer does not give back the text of {facts.altered:,} of {facts.documents:,} held-out "
            f"documents ({facts.altered_examples[0]}), so bits per byte would be too low; choose another tokenizer, "
            "or accept it with tokenizer.lossy=true."
        )
