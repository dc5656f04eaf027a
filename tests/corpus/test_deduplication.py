"""Of training documents that nearly copy each other, the first is trained on."""

import random
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus import near_copies, parquet
from retro_lab.corpus.deduplication import DeduplicationStage
from retro_lab.corpus.documents import Document, DocumentSource
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.grams import grams_of, jaccard
from retro_lab.corpus.near_copies import NearCopiesStage, bands, signature
from retro_lab.corpus.parquet import document_files, read_documents
from retro_lab.corpus.sources.python_source import PythonSource
from retro_lab.errors import ConfigurationError


class Texts(DocumentSource):
    """Training documents of given texts in given parts, and two that are held out."""

    def __init__(self, *parts: list[str]) -> None:
        super().__init__()
        self.texts = parts

    def identity(self) -> dict[str, object]:
        return {"texts": self.texts}

    @property
    def named_splits(self) -> frozenset[str]:
        return frozenset({"validation", "test"})

    def parts(self) -> int:
        return len(self.texts) + 1

    def read(self, part: int) -> Iterator[tuple[str, Document]]:
        if part == len(self.texts):
            yield "validation", Document("validation", "held", "the same")
            yield "test", Document("test", "held", "the same")
            return
        before = sum(map(len, self.texts[:part]))
        for number, text in enumerate(self.texts[part]):
            yield "train", Document(str(before + number), "given", text)


def deduplicated(parts, similarity=0.8):
    """Ids of the training documents that are kept, and the facts."""
    with tempfile.TemporaryDirectory() as name:
        store = ArtifactStore(Path(name))
        documents = store.build(DocumentsStage(Texts(*parts)))
        found = store.build(NearCopiesStage(documents, similarity))
        kept = store.build(DeduplicationStage(documents, found))
        assert [path.name for path in found.folder.iterdir() if path.is_dir()] == []  # grams do not stay on the disk
        rows = [
            row for path in document_files(kept, "train") for batch in read_documents(path) for row in batch.to_pylist()
        ]
        assert all(int(row["bytes"]) == len(row["text"].encode()) for row in rows)
        for split in ("validation", "test"):
            assert kept.facts[split] == {"documents": 1, "bytes": 8}
        assert kept.facts["train"] == {"documents": len(rows), "bytes": sum(row["bytes"] for row in rows)}
        return [int(row["id"]) for row in rows], kept.facts["deduplication"]


def first_of_each(texts, similarity):
    """The naive way: compare each document with all that are kept before it."""
    kept = []
    sets = [grams_of(text) for text in texts]
    for number, grams in enumerate(sets):
        if all(jaccard(grams, sets[other]) < similarity for other in kept):
            kept.append(number)
    return kept


def edited(words, draw, share):
    return " ".join(draw.choice("xyz") if draw.random() < share else word for word in words)


@settings(max_examples=8)
@given(st.integers(0, 2**32), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_what_is_kept_is_what_comparing_all_pairs_keeps(seed, similarity):
    draw = random.Random(seed)
    originals = [[f"{draw.randint(0, 400)}" for _ in range(draw.choice([3, 20, 200]))] for _ in range(5)]
    texts = [edited(words, draw, share) for words in originals for share in (0, 0, 0.001, 0.004, 0.01, 0.03)]
    draw.shuffle(texts)
    kept, facts = deduplicated([texts[:11], texts[11:]], similarity)
    assert kept == first_of_each(texts, similarity)
    assert facts["dropped"]["documents"] == len(texts) - len(kept) >= 5
    assert facts["similarity"] == similarity


@settings(max_examples=4)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 40), max_size=4), st.integers(1, 7))
def test_parts_and_shards_do_not_change_what_is_kept(seed, cuts, documents):
    draw = random.Random(seed)
    originals = [[f"{draw.randint(0, 400)}" for _ in range(60)] for _ in range(10)]
    texts = [edited(draw.choice(originals), draw, 0.003) for _ in range(40)]
    whole = deduplicated([texts])
    edges = [0, *sorted(cuts), 40]
    parts = [texts[start:stop] for start, stop in pairwise(edges)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP_DOCUMENTS", documents)
        patch.setattr(parquet, "GROUPS_IN_PIECE", 1)
        assert deduplicated(parts) == whole
    assert 0 < len(whole[0]) < 40


def test_what_is_dropped_is_counted_and_named():
    words = [str(number) for number in range(112)]  # 100 grams
    near, far = " ".join(words[:92]), " ".join(words[:91])  # of which they share 80 and 79
    kept, facts = deduplicated([["another", " ".join(words), near], [far, "Another!"]])
    assert kept == [0, 1, 3]
    assert facts["dropped"] == {"documents": 2, "bytes": len(near) + len("Another!")}
    assert facts["examples"] == ["2: 0.80 like 1", "4: 1.00 like 0"]


def test_of_many_copies_the_first_is_left():
    kept, facts = deduplicated([["the same"] * 300, ["The Same"] * 200])
    assert kept == [0]
    assert facts["dropped"]["documents"] == 499
    assert len(facts["examples"]) == 5


def test_a_copy_of_what_is_dropped_itself_stays():
    """Similarity is not transitive: a document is compared with those that are kept, so no chain is dropped whole."""
    words = [str(number) for number in range(152)]
    chain = [" ".join(words[start : start + 112]) for start in (0, 10, 20, 30)]  # 90 of 110 grams: 0.82; 80 of 120
    assert deduplicated([chain])[0] == [0, 2]


@pytest.mark.parametrize("similarity", [0.1, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_find_what_is_just_similar_enough(similarity):
    count, rows = bands(similarity)
    assert count * rows <= near_copies.PERMUTATIONS
    assert 1 - (1 - similarity**rows) ** count >= near_copies.RECALL


def test_signatures_agree_in_as_many_places_as_the_sets_are_similar():
    words = [str(number) for number in range(30_000)]
    one, other = grams_of(" ".join(words[3000:])), grams_of(" ".join(words))
    agreeing = signature(one) == signature(other)
    assert abs(agreeing.mean() - 0.9) < 4 * np.sqrt(0.09 / near_copies.PERMUTATIONS)
    assert jaccard(one, other) == pytest.approx(0.9, abs=0.001)


def test_real_text_loses_its_planted_copies_and_nothing_else_than_comparing_all_pairs():
    draw = random.Random(0)
    source = PythonSource(["transformers"], ["models/*/image_processing_*.py"], max_bytes=4e5)
    texts = [document.text for part in range(source.parts()) for _, document in source.read(part)]
    for text in texts[::4]:
        texts += [edited(text.split(), draw, share) for share in (0.001, 0.005, 0.02)]
    expected = first_of_each(texts, 0.8)
    assert 10 < len(texts) - len(expected) < len(texts) / 2
    assert deduplicated([texts])[0] == expected


@pytest.mark.parametrize("similarity", [0, -1, 1.01, float("nan")])
def test_an_impossible_similarity_is_refused(similarity):
    with pytest.raises(ConfigurationError, match=r"deduplication\.similarity"):
        NearCopiesStage(None, similarity)
