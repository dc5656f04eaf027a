"""Texts of which only a part is scored: where the part begins, in characters and in tokens, and what is refused."""

import bz2
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from written_files import read_all, write_bytes, write_lines, write_parquet

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.corpus import build_corpus
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.parquet import count_words
from retro_lab.corpus.sources.hub import HubSource
from retro_lab.corpus.sources.lambada import LambadaSource
from retro_lab.corpus.sources.summaries import SummarySource
from retro_lab.corpus.sources.wikipedia_dump import WikipediaDumpSource
from retro_lab.corpus.tokenizer import ByteBPE, DocumentTokenizer
from retro_lab.errors import ConfigurationError, CorpusError
from retro_lab.evaluation.config import stride_of

LOCAL_LAMBADA = Path(__file__).parents[3] / "shared" / "data" / "lambada_test_openai.jsonl"
ONLY_TEST = {"train_split": None, "test_split": "test"}
PAGE = "<page><title>{}</title><ns>{}</ns>{}<revision><text>{}</text></revision></page>"


def scored(source):
    """The context and the scored text of every usable document."""
    found = [document for split, document in read_all(source) if document.problem is None]
    return [(document.text[: document.scored_from], document.text[document.scored_from :]) for document in found]


@pytest.mark.parametrize("format", ["jsonl", "txt", "parquet"])
def test_lambada_scores_the_last_word_with_its_space(tmp_path, format):
    texts = ["He said yes ", "one", "", "a line\n\nthen \u00e9t\u00e9\n"]
    if format == "jsonl":
        path = write_lines(tmp_path / "some.jsonl", *({"text": text} for text in texts))
    elif format == "parquet":
        path = write_parquet(tmp_path / "some.parquet", text=texts)
    else:
        texts = [text.replace("\n", " ") for text in texts]
        path = write_bytes(tmp_path / "some.txt", "\n".join(texts).encode())
    source = LambadaSource(dataset=str(path), **ONLY_TEST)
    assert {split for split, _ in read_all(source)} == {"test"}
    context = "a line\n\nthen" if format != "txt" else "a line  then"
    assert scored(source)[0] == ("He said", " yes")
    assert (context, " \u00e9t\u00e9") in scored(source)
    assert "only one word" in [document.problem for _, document in read_all(source)]


def test_the_real_lambada_has_a_last_word_in_every_passage():
    if not LOCAL_LAMBADA.exists():
        pytest.skip(f"{LOCAL_LAMBADA.name} is not here")
    found = scored(LambadaSource(dataset=str(LOCAL_LAMBADA), **ONLY_TEST))
    assert len(found) == 5153
    assert found[0][1] == " signs"
    assert all(word.split() == [word[1:]] for _, word in found)


def test_summaries_follow_their_articles_whatever_the_fields_are_called(tmp_path):
    rows = [
        {"body": " An article.\n", "abstract": "Short. "},
        {"body": "", "abstract": "x"},
        {"body": "y", "abstract": ""},
    ]
    source = SummarySource(
        article_field="body", text_field="abstract", dataset=str(write_lines(tmp_path / "my.jsonl", *rows)), **ONLY_TEST
    )
    assert scored(source) == [("An article.\n\nTL;DR:", " Short.")]
    assert [document.problem for _, document in read_all(source)] == [None, "no article", "no summary"]
    with pytest.raises(CorpusError, match=r"no field 'article'.*corpus\.article_field"):
        read_all(
            SummarySource(
                article_field="article", text_field="abstract", dataset=str(tmp_path / "my.jsonl"), **ONLY_TEST
            )
        )


def parts_of(folder, **options):
    return HubSource(str(folder), part_field="meta.set", parts={"arxiv": "ArXiv", "law": "Law"}, **options)


def test_a_part_of_a_dataset_can_be_read_alone(tmp_path):
    rows = [{"text": f"{name} {n}", "meta": {"set": name}} for n in range(3) for name in ("ArXiv", "Law")]
    for split in ("train", "test"):
        write_lines(tmp_path / f"{split}.jsonl", *rows)
    whole, law = (parts_of(tmp_path, test_split="test", part=part) for part in (None, "law"))
    assert [document.text for _, document in read_all(law) if not document.problem] == ["Law 0", "Law 1", "Law 2"] * 2
    assert "of another part than Law" in [document.problem for _, document in read_all(law)]
    assert whole.identity() != law.identity()
    with pytest.raises(ConfigurationError, match=r"corpus\.part=books .* one of arxiv, law"):
        parts_of(tmp_path, part="books")


def test_to_score_no_document_to_train_on_is_read(tmp_path):
    for split in ("train", "validation", "test"):
        write_lines(tmp_path / f"{split}.jsonl", *({"text": f"{split} {n}"} for n in range(20)))
    whole = HubSource(str(tmp_path), validation_split="validation", test_split="test")
    expected = [document for split, document in read_all(whole) if split == "test"]
    assert [document for _, document in read_all(whole.to_score())] == expected
    halved = HubSource(str(tmp_path), validation_split="validation")
    expected = [pair for pair in read_all(halved) if pair[0] != "train"]
    assert {split for split, _ in expected} == {"validation", "test"}
    assert read_all(halved.to_score()) == expected
    before = whole.to_score().identity()
    write_lines(tmp_path / "train.jsonl", {"text": "changed"})
    again = HubSource(str(tmp_path), validation_split="validation", test_split="test").to_score()
    assert again.identity() == before


def test_one_file_is_not_taken_for_several_splits(tmp_path):
    path = write_lines(tmp_path / "some.jsonl", {"text": "a"})
    with pytest.raises(ConfigurationError, match="one file, and the splits train, test"):
        HubSource(str(path), test_split="test")
    with pytest.raises(ConfigurationError, match="all null"):
        HubSource(str(path), train_split=None)


def dump(path, *pages):
    return write_bytes(path, f'<mediawiki xmlns="urn:x">{"".join(pages)}</mediawiki>'.encode())


def test_a_dump_gives_the_named_articles_and_no_redirects(tmp_path):
    pages = [
        PAGE.format("A", 0, '<redirect title="B"/>', "#REDIRECT"), PAGE.format("B", 1, "", "a talk page"),
        PAGE.format("A", 0, "", "Text &amp; more."), PAGE.format("C", 0, "", "unwanted"),
    ]  # fmt: skip
    for name in ("a.xml", "b.xml.bz2"):
        source = WikipediaDumpSource(str(dump(tmp_path / name, *pages)), ["A", "B"])
        assert [(document.id, document.text, document.problem) for _, document in read_all(source)] == [
            ("A", "A\n\nText & more.", None),
            ("B", "", "not in the dump"),
        ]
    both = WikipediaDumpSource(str(tmp_path / "*.xml*"), ["A"])
    assert both.parts() == 2
    assert both.identity() != source.identity()


def test_what_is_no_dump_says_so(tmp_path):
    whole = dump(tmp_path / "whole.xml.bz2", *[PAGE.format("C", 0, "", "text" * n) for n in range(300)]).read_bytes()
    for name, content in (
        ("cut.xml.bz2", whole[:-20]), ("cut.xml", bz2.decompress(whole)[:-20]), ("other.xml", b"<a></a>"),
        ("empty.xml", b""), ("text.xml", b"some text"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorpusError, match=rf"^{name} "):
            read_all(WikipediaDumpSource(str(tmp_path / name), ["A"]))
    with pytest.raises(CorpusError, match=r"corpus\.path=.*names no file"):
        WikipediaDumpSource(str(tmp_path / "none"), ["A"]).parts()


def test_the_library_that_cleans_articles_is_named_where_it_is_missing(tmp_path, monkeypatch):
    source = WikipediaDumpSource(str(dump(tmp_path / "a.xml", PAGE.format("A", 0, "", "text"))), ["A"])
    monkeypatch.setitem(sys.modules, "mwparserfromhell", None)
    with pytest.raises(ConfigurationError, match=r"retro_lab\[wikipedia\]"):
        read_all(source)


def test_nobody_trains_on_what_is_there_to_be_scored(tmp_path):
    source = LambadaSource(dataset=str(write_lines(tmp_path / "some.jsonl", {"text": "one two"})), **ONLY_TEST)
    with pytest.raises(ConfigurationError, match=r"lambada has no train split.*evaluation\.datasets"):
        build_corpus(
            ArtifactStore(tmp_path / "artifacts"), source, ByteBPE(300, 1e6), name="lambada", deduplication=None,
            decontamination=None, chunk_length=8, seed=0,
        )  # fmt: skip


@pytest.mark.parametrize(("line_ends", "words"), [(False, 5), (True, 7)])
def test_words_are_those_of_the_scored_text(tmp_path, line_ends, words):
    rows = [{"article": "not counted", "summary": "a b\nc"}, {"article": "no", "summary": "d\n e"}]
    source = SummarySource(
        article_field="article",
        text_field="summary",
        dataset=str(write_lines(tmp_path / "my.jsonl", *rows)),
        **ONLY_TEST,
    )
    documents = ArtifactStore(tmp_path / "artifacts").build(DocumentsStage(source))
    assert count_words(documents, "test", line_ends) == words


@pytest.fixture(scope="module")
def bpe():
    return ByteBPE(400, 1e6).make(["the frozen encoder finds the \u00e9t\u00e9 of neighbors \U0001f600 the end"] * 9)


@given(st.text("the frozn \u00e9\n\U0001f600", min_size=1, max_size=30), st.data())
def test_the_first_scored_token_is_the_first_with_a_byte_of_the_scored_text(bpe, text, data):
    """Tokens of a byte-level vocabulary are written with one character for each of their bytes."""
    start = data.draw(st.integers(0, len(text) - 1))
    trimmed = Tokenizer.from_str(bpe.tokenizer.to_str())
    trimmed.post_processor = processors.ByteLevel(trim_offsets=True)
    ids = bpe.encode([text])[0].tolist()
    sizes = [len(bpe.tokenizer.id_to_token(i)) for i in ids[1:]]
    before = len(text[:start].encode())
    place = bpe.token_at(text, start)
    assert sum(sizes[: place - 1]) <= before < sum(sizes[:place])
    assert DocumentTokenizer(trimmed, bpe.document_marker).token_at(text, start) == place


@given(st.floats(0, 0.999), st.integers(1, 64), st.integers(1, 64))
def test_an_overlap_is_rounded_up_to_whole_chunks(overlap, chunk, chunks):
    length = chunk * chunks
    stride = stride_of(overlap, 1, chunk, length)
    assert stride % chunk == 0
    assert 0 < stride <= length
    assert stride == chunk or 1 - stride / length >= overlap - 1e-6
    assert stride == length or 1 - (stride + chunk) / length < overlap + 1e-6
    assert stride_of(None, 7, chunk, length) == 7
    assert stride_of(0.875, 1, 64, 2048) == 256
