"""Documents that are nearly held-out ones are not trained on."""

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_files import write_lines

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus import parquet
from retro_lab.corpus.decontamination import (
    DecontaminationStage,
    HeldOutDocuments,
    HeldOutStage,
    bands,
    grams_of,
    jaccard,
    signature,
)
from retro_lab.corpus.documents import HELD_OUT
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.parquet import document_files, read_documents
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.corpus.sources.python_source import PythonSource
from retro_lab.errors import ConfigurationError, CorpusError


def exact_grams(text):
    """13-grams as tuples of words."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[place : place + 13]) for place in range(max(1, len(words) - 12))}


@given(st.lists(st.sampled_from(["a", "b", "c", "ß"]), min_size=1, max_size=40), st.integers(0, 39), st.integers(0, 39))
def test_similarity_is_the_jaccard_similarity_of_13_grams(words, start, stop):
    one, other = " ".join(words).upper(), ", ".join(words[start:stop] or ["a"])
    ours, theirs = exact_grams(one), exact_grams(other)
    assert jaccard(grams_of(one), grams_of(other)) == pytest.approx(len(ours & theirs) / len(ours | theirs))


@pytest.mark.parametrize("text", ["!!! ???", "one two", "数据", ""])
def test_texts_shorter_than_a_gram_are_like_themselves_alone(text):
    assert jaccard(grams_of(text), grams_of(text)) == 1
    assert jaccard(grams_of(text), grams_of("something else")) == 0


def holding(texts, similarity=0.8):
    """Held-out documents of these texts, numbered from 0."""
    held_out = HeldOutDocuments(similarity)
    for number, text in enumerate(texts):
        held_out.add(str(number), grams_of(text), signature(grams_of(text)).hashvalues)
    return held_out


def test_chinese_and_japanese_are_compared_by_characters():
    text = "今天天气很好我们一起去公园散步吧然后回家吃晚饭看书睡觉"
    changed = text[:20] + "了" + text[21:]  # 13-grams begin at the first 15 characters; 7 of them end before this one
    assert len(grams_of(text)) == 15
    assert jaccard(grams_of(text), grams_of(changed)) == pytest.approx(8 / 22)
    assert jaccard(grams_of("ab今天cd"), grams_of("ab 今 天 cd")) == 1


@pytest.mark.parametrize("similarity", [0.1, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_find_what_is_just_similar_enough(similarity):
    count, rows = bands(similarity)
    assert count * rows <= 128
    assert 1 - (1 - similarity**rows) ** count >= 0.9999


def test_a_long_document_is_compared_in_pieces():
    words = [str(number) for number in range(30_000)]
    held_out = holding([" ".join(words)])
    similarity, identifier = held_out.most_similar(" ".join(words[3000:]))
    assert (similarity, identifier) == (pytest.approx(0.9, abs=0.001), "0")


@pytest.mark.parametrize("threshold", [0.8, 0.5])
def test_recall_and_precision_on_real_text(threshold):
    """Files of an installed package, and edited copies of them at every similarity; exact Jaccard is the judge."""
    draw = random.Random(0)
    source = PythonSource(["transformers"], ["models/*/image_processing_*.py"], max_bytes=1.5e6)
    texts = [document.text for part in range(source.parts()) for _, document in source.read(part)]
    held, train = texts[::4], [text for place, text in enumerate(texts) if place % 4]
    for text in held:
        words = re.findall(r"\w+", text)
        for changed in (0.002, 0.01, 0.02, 0.05):
            train.append(" ".join("edited" if draw.random() < changed else word for word in words))
    held_out = holding(held, threshold)
    held_grams = [exact_grams(text) for text in held]

    def exact(text):
        grams = exact_grams(text)
        return max(len(grams & other) / len(grams | other) for other in held_grams)

    truth = np.array([exact(text) for text in train])
    found = np.array([held_out.most_similar(text)[0] for text in train])
    wanted, dropped = truth >= threshold, found >= threshold
    assert wanted.sum() > 30
    assert (~wanted & (truth > threshold - 0.3)).sum() > 10  # near misses are among them
    np.testing.assert_allclose(found[dropped], truth[dropped])
    assert (dropped & wanted).sum() / dropped.sum() == 1
    assert (dropped & wanted).sum() / wanted.sum() >= 0.99


WORDS = [f"word{number}" for number in range(16)]


def documents_source(tmp_path):
    """What `documents_of` wrote."""
    held_out = {f"{split}_path": str(tmp_path / "held" / f"{split}.jsonl") for split in HELD_OUT}
    return LocalSource(str(tmp_path / "train"), **held_out)


def documents_of(tmp_path, train, validation, test=("a text to test on",)):
    """The `documents` artifact of two training files and two held-out ones."""
    half = len(train) // 2
    for name, texts in (("a", train[:half]), ("b", train[half:])):
        write_lines(tmp_path / "train" / f"{name}.jsonl", *({"text": text} for text in texts))
    for name, texts in (("validation", validation), ("test", test)):
        write_lines(tmp_path / "held" / f"{name}.jsonl", *({"text": text} for text in texts))
    store = ArtifactStore(tmp_path / "artifacts")
    return store, store.build(DocumentsStage(documents_source(tmp_path)))


def clean_of(store, documents, similarity):
    """The documents without what is dropped."""
    return store.build(DecontaminationStage(documents, store.build(HeldOutStage(documents)), similarity))


def texts_of(artifact, split):
    batches = [batch for path in document_files(artifact, split) for batch in read_documents(path)]
    return [text for batch in batches for text in batch["text"].to_pylist()]


def test_what_is_dropped_is_counted_and_named(tmp_path):
    held = [" ".join(WORDS), "something short"]
    train = ["quite another text", " ".join(WORDS) + "!", "Something  SHORT", " ".join(reversed(WORDS))]
    store, documents = documents_of(tmp_path, train, held[:1], held[1:])
    clean = clean_of(store, documents, 0.8)
    assert texts_of(clean, "train") == [train[0], train[3]]
    assert [texts_of(clean, split) for split in HELD_OUT] == [held[:1], held[1:]]
    facts = clean.facts
    assert facts["train"] == {"documents": 2, "bytes": len(train[0]) + len(train[3])}
    assert all(facts[split] == documents.facts[split] for split in HELD_OUT)
    assert facts["decontamination"]["dropped"] == {"documents": 2, "bytes": len(train[1]) + len(train[2])}
    assert facts["decontamination"]["examples"] == [
        "a.jsonl:2: 1.00 like validation.jsonl:1",
        "b.jsonl:1: 1.00 like test.jsonl:1",
    ]


def test_a_document_is_dropped_from_the_wanted_similarity_on(tmp_path):
    words = [str(number) for number in range(112)]  # 100 grams
    text = " ".join(words)
    store, documents = documents_of(tmp_path, ["another", " ".join(words[:92])], [text])  # shares 80 of them
    assert len(texts_of(clean_of(store, documents, 0.81), "train")) == 2
    assert texts_of(clean_of(store, documents, 0.8), "train") == ["another"]


def test_nothing_left_to_train_on_is_told(tmp_path):
    store, documents = documents_of(tmp_path, ["the same", "the same."], ["The same"])
    with pytest.raises(CorpusError, match=r"All 2 documents .* set decontamination=none"):
        clean_of(store, documents, 0.8)


@pytest.mark.parametrize("similarity", [0, -1, 1.01, float("nan")])
def test_an_impossible_similarity_is_refused(similarity):
    with pytest.raises(ConfigurationError, match=r"decontamination\.similarity"):
        DecontaminationStage(None, None, similarity)


def test_a_large_file_is_compared_in_shards_with_the_same_result(tmp_path, monkeypatch):
    """Shards depend on no other and rows come back in order, so any number of processes may share them."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=40)) for _ in range(60)]
    store, documents = documents_of(tmp_path, texts, [texts[7], texts[41], "quite another"])
    whole = clean_of(store, documents, 0.8)
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 900)
    monkeypatch.setattr(parquet, "GROUPS_IN_PIECE", 1)
    other = ArtifactStore(tmp_path / "other")
    documents = other.build(DocumentsStage(documents_source(tmp_path)))
    held_out = other.build(HeldOutStage(documents))
    stage = DecontaminationStage(documents, held_out, 0.8)
    cut = other.build(stage)
    assert len(stage.shard_sizes()) > 10
    assert texts_of(cut, "train") == texts_of(whole, "train") == [t for n, t in enumerate(texts) if n not in (7, 41)]
    assert texts_of(cut, "validation") == texts_of(whole, "validation")
    assert cut.facts == whole.facts
