"""Documents that are nearly held-out ones are not trained on."""

import random
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_files import write_lines

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus import parquet
from retro_lab.corpus.decontamination import EDGES, DecontaminationStage, HeldOutStage
from retro_lab.corpus.documents import HELD_OUT
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.grams import grams_of, jaccard
from retro_lab.corpus.parquet import document_files, read_documents
from retro_lab.corpus.sources.local import LocalSource
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


def test_chinese_and_japanese_are_compared_by_characters():
    text = "今天天气很好我们一起去公园散步吧然后回家吃晚饭看书睡觉"
    changed = text[:20] + "了" + text[21:]  # 13-grams begin at the first 15 characters; 7 of them end before this one
    assert len(grams_of(text)) == 15
    assert jaccard(grams_of(text), grams_of(changed)) == pytest.approx(8 / 22)
    assert jaccard(grams_of("ab今天cd"), grams_of("ab 今 天 cd")) == 1


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


def test_the_nearest_training_document_of_each_held_out_one_is_recorded(tmp_path, monkeypatch):
    """Of those that are kept, exactly, and in any shards; a dropped one is nearest to none."""
    draw = random.Random(0)
    held = [[str(number) for number in range(start, start + draw.randint(5, 120))] for start in range(0, 4000, 200)]
    train = [words[draw.randint(0, len(words) // 2) : draw.randint(len(words) // 2, len(words))] for words in held * 2]
    train = [" ".join([*words, *(f"new{draw.random()}" for _ in range(draw.randint(0, 40)))]) for words in train]
    held = [" ".join(words) for words in held]
    monkeypatch.setattr(parquet, "ROW_GROUP_DOCUMENTS", 4)
    monkeypatch.setattr(parquet, "GROUPS_IN_PIECE", 1)
    store, documents = documents_of(tmp_path, [*train, held[3] + "!"], held[:12], held[12:])
    clean = clean_of(store, documents, 0.7)
    kept = texts_of(clean, "train")
    similarities = np.array([[jaccard(grams_of(text), grams_of(other)) for other in kept] for text in held])
    assert 0 < len(train) + 1 - len(kept) < 30
    table = pq.read_table(clean.folder / "nearest.parquet")
    np.testing.assert_allclose(table["similarity"].to_numpy(), similarities.max(1))
    assert table["split"].to_pylist() == ["validation"] * 12 + ["test"] * 8
    ids = [i for path in document_files(clean, "train") for b in read_documents(path) for i in b["id"].to_pylist()]
    assert table["nearest"].to_pylist() == [ids[row.argmax()] if row.any() else None for row in similarities]
    for split, rows in (("validation", slice(0, 12)), ("test", slice(12, 20))):
        nearest, found = clean.facts["nearest"][split], similarities[rows].max(1)
        assert nearest["median"] == pytest.approx(np.median(found))
        assert nearest["largest"] == pytest.approx(found.max())
        assert nearest["document"] == f"{split}.jsonl:{found.argmax() + 1}"
        assert nearest["like"] == ids[similarities[rows][found.argmax()].argmax()]
        assert nearest["counts"] == np.histogram(found, EDGES)[0].tolist()


def test_held_out_documents_that_share_nothing_have_no_nearest_one(tmp_path):
    store, documents = documents_of(tmp_path, ["one text", "another"], ["held out"])
    nearest = clean_of(store, documents, 0.8).facts["nearest"]["validation"]
    assert nearest == {
        "median": 0,
        "largest": 0,
        "document": "validation.jsonl:1",
        "like": None,
        "counts": [1, 0, 0, 0, 0],
    }


@pytest.mark.parametrize("threshold", [0.8, 0.3])
def test_what_is_dropped_is_what_exact_similarity_says(tmp_path, threshold):
    """Edited copies at every similarity, and long texts that share a part; sets of tuples of words are the judge."""
    draw = random.Random(1)
    held = [[draw.choice("abcdefgh") * draw.randint(1, 9) for _ in range(300)] for _ in range(12)]
    train = [
        " ".join("edited" if draw.random() < changed else word for word in words)
        for words in held
        for changed in (0.002, 0.005, 0.01, 0.02, 0.05)
    ]
    held = [" ".join(words) for words in held]
    store, documents = documents_of(tmp_path, train, held[:6], held[6:])
    sets = [exact_grams(text) for text in held]
    truth = [
        max(len(grams & other) / len(grams | other) for other in sets)
        for grams in (exact_grams(text) for text in train)
    ]
    expected = [text for text, similarity in zip(train, truth, strict=True) if similarity < threshold]
    assert 0 < len(expected) < len(train) - 10
    assert texts_of(clean_of(store, documents, threshold), "train") == expected


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
