"""Corpora as tokens: the first with a tokenizer of its own, and others that are like it."""

import random

import pytest
from tokenizers_of_all_kinds import made
from written_files import write_lines

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.corpus import build_corpus, build_other_corpus
from retro_lab.corpus.documents import HELD_OUT, SPLITS
from retro_lab.corpus.parquet import document_files, read_documents
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.corpus.tokenizer import ByteBPE, DocumentTokenizer, TokenizerRecipe
from retro_lab.errors import ConfigurationError

BUILD = {"chunk_length": 8, "seed": 0}


def texts(count, seed):
    draw = random.Random(seed)
    return [" ".join(str(draw.randrange(1000)) for _ in range(30)) for _ in range(count)]


def source(folder, train, validation, test):
    """A source of these texts in `folder`."""
    train, validation, test = (
        str(write_lines(folder / f"{name}.jsonl", *({"text": text} for text in split)))
        for name, split in (("train", train), ("validation", validation), ("test", test))
    )
    return LocalSource(train, validation, test)


def texts_of(corpus, split):
    batches = [batch for path in document_files(corpus.documents, split) for batch in read_documents(path)]
    return [text for batch in batches for text in batch["text"].to_pylist()]


@pytest.fixture
def artifacts(tmp_path):
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def first(artifacts, tmp_path):
    given = source(tmp_path / "first", texts(9, 0), texts(3, 1), texts(3, 2))
    return build_corpus(
        artifacts, given, ByteBPE(300, 1e6), name="first", deduplication=0.8, decontamination=0.8, **BUILD
    )


@pytest.fixture
def other_source(tmp_path, first):
    """Texts of its own, and near copies of documents that the first corpus and it hold out."""
    own = texts(5, 3), texts(3, 4), texts(3, 5)
    copies = [text + " 1" for held in (*(texts_of(first, split) for split in HELD_OUT), *own[1:]) for text in held]
    return own[0], source(tmp_path / "other", own[0] + copies, *own[1:])


def test_another_corpus_has_the_tokenizer_of_the_first_and_no_copy_of_what_either_holds_out(
    artifacts, first, other_source
):
    own, given = other_source
    other = build_other_corpus(artifacts, given, first, name="other", deduplication=0.8, decontamination=0.8, **BUILD)
    assert (other.name, first.name) == ("other", "first")
    assert other.tokenizer == first.tokenizer
    assert texts_of(other, "train") == own
    assert [*other.stores] == [*first.stores] == [*SPLITS]
    for corpus in (first, other):
        for split, store in corpus.stores.items():
            found = store.texts(store.document_start[:-1], 40)
            assert sorted(found) == sorted(texts_of(corpus, split))


def test_only_the_splits_asked_for_are_built(artifacts, first, other_source):
    before = {path.name for path in artifacts.root.glob("*/*")}
    given = other_source[1]
    other = build_other_corpus(
        artifacts, given, first, name="other", deduplication=0.8, decontamination=0.8, splits=["test"], **BUILD
    )
    assert [*other.stores] == ["test"]
    built = [path.parent.name for path in artifacts.root.glob("*/*/manifest.json") if path.parent.name not in before]
    kinds = sorted(path.parent.name for path in artifacts.root.glob("*/*") if path.name in built)
    assert kinds == ["documents", "tokens"]


class Lossy(TokenizerRecipe):
    """A tokenizer that knows few words."""

    learns = False

    def __init__(self, lossy):
        self.lossy = lossy

    def identity(self):
        return {"kind": "word_level"}

    def make(self, texts):
        return DocumentTokenizer.adapt(*made("word_level"))


def test_another_corpus_is_refused_where_the_tokenizer_loses_its_text_and_that_is_not_accepted(artifacts, tmp_path):
    known = source(tmp_path / "known", ["the"], ["the dog"], ["dog"])
    unknown = source(tmp_path / "unknown", ["the"], ["dog"], ["an unknown word"])
    for lossy in (True, False):
        first = build_corpus(
            artifacts, known, Lossy(lossy), name="known", deduplication=None, decontamination=None, **BUILD
        )
        others = {"name": "unknown", "deduplication": None, "decontamination": None, **BUILD}
        assert build_other_corpus(artifacts, unknown, first, splits=["train", "validation"], **others).stores
        if lossy:
            assert build_other_corpus(artifacts, unknown, first, **others).stores["test"].facts.altered == 1
            continue
        with pytest.raises(ConfigurationError, match="the text of 1 of 1 held-out documents"):
            build_other_corpus(artifacts, unknown, first, **others)
