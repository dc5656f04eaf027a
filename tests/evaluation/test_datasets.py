"""Every data set's score, from its own file format on, is that of a plain loop over the raw text.

One command trains small models and scores them on all data sets. The loop below reads the same texts as Python strings,
knows nothing of windows, masks or shares, and takes each token's probability from a forward pass over the one window
that has to score it.
"""

import bz2
import csv
import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from in_process import SMALL, run
from tokenizers import Tokenizer

from retro_lab import open_run
from retro_lab.config.compose import compose
from retro_lab.runs.records import load_run
from retro_lab.tasks.build import Inputs

CHUNK, LENGTH, STRIDE, K = 8, 64, 32, 2
RETRIEVALS = [("baseline", 0), ("retro", 0), ("retro", K)]
WORDS = [
    "the",
    "frozen",
    "encoder",
    "finds",
    "neighbors",
    "of",
    "chunks",
    "in",
    "tokens",
    "\u00e9t\u00e9",
    "\U0001f600",
]
RHYME = "one two three four five six seven eight nine ten "


def prose(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


@dataclass(frozen=True)
class Text:
    """What a data set's files hold: documents by id, each with the characters that are not scored."""

    documents: dict[str, tuple[str, int]]
    stride: int = STRIDE
    line_ends: bool = False


def whole(**documents: str) -> dict[str, tuple[str, int]]:
    return {name: (text, 0) for name, text in documents.items()}


ARTICLES = {
    "Hurricane Ida": (
        "'''Hurricane Ida''' was a [[Tropical cyclone|storm]].<ref>Smith</ref> [[File:Ida.jpg|thumb|Ida]]\n\n"
        "{| class=x\n| table\n|}\n== Path ==\n" + prose(1, 90) + "\n\n== References ==\n{{reflist}}\nBook.\n"
    ),
    "Cuijk": "'''Cuijk''' is a town. {{convert|3|km}}\n== See also ==\n* [[Venray]]\n",
    "Other": "Not wanted.",
}
CLEANED = {
    "Hurricane Ida": "Hurricane Ida\n\nHurricane Ida was a storm.\n\nPath \n" + prose(1, 90),
    "Cuijk": "Cuijk\n\nCuijk is a town.",
}
WIKITEXT = {
    "One": [" = One = \n", " \n", f" {prose(2, 100)} \n", " \n", " A line . \n", " \n"],
    "Two": [" = Two = \n", " \n", " Short . \n"],
}
PILE = [("ArXiv", prose(3, 60)), ("Github", prose(4, 9)), ("ArXiv", prose(5, 5)), ("Books3", "a book")]
C4 = [prose(20 + n, 5 + 9 * n) for n in range(8)]
SUMMARIES = [
    ("Storm\n\n" + prose(6, 120), "A storm \u00e9t\u00e9 came. It went."),
    (prose(7, 10), prose(8, 70)),
    ("", "of nothing"),
]
LAMBADA = [
    (RHYME * 7 + "one two", "three"), (RHYME + "\u00e9t\u00e9 one two three", "four"), ("two one", "six"),
    (RHYME * 3 + "one\n\ntwo", "three"), (prose(9, 30), "\u00e9t\u00e9"), (RHYME + "one", "nineteen"),
]  # fmt: skip


def expected() -> dict[str, Text]:
    wikitext = {f"test:{title}": ("".join(lines), 0) for title, lines in WIKITEXT.items()}
    summaries = {
        f"curation.csv:{row}": (f"{article}\n\nTL;DR: {summary}", len(f"{article}\n\nTL;DR:"))
        for row, (article, summary) in enumerate(SUMMARIES, start=1)
        if article
    }
    lambada = {}
    for row, (context, word) in enumerate(LAMBADA, start=1):
        lambada[f"lambada.jsonl:{row}"] = (f"{context} {word}", len(context))
    pile = {
        name: [(row, text) for row, (part, text) in enumerate(PILE, 1) if part == name] for name in ("ArXiv", "Github")
    }
    return {
        "wikitext103": Text(wikitext, stride=8, line_ends=True),
        "pile/arxiv": Text({f"test.jsonl.zst:{row}": (text, 0) for row, text in pile["ArXiv"]}),
        "pile/github": Text({f"test.jsonl.zst:{row}": (text, 0) for row, text in pile["Github"]}),
        "curation_corpus": Text(summaries),
        "lambada": Text(lambada),
        "wikipedia_september_2021": Text(whole(**CLEANED)),
        "c4": Text({f"https://{n}": (page, 0) for n, page in enumerate(C4)}),
    }


def write_datasets(folder: Path) -> list[str]:
    """Write each data set as it is published, without what is to train on, and return the overrides that name it."""

    def card(name: str, subset: str, split: str, path: str) -> None:
        files = f"  data_files:\n  - split: {split}\n    path: {path}"
        (folder / name / "README.md").write_text(f"---\nconfigs:\n- config_name: {subset}\n{files}\n---\n")

    for name in ("c4/en", "wikitext/wikitext-103-raw-v1", "pile"):
        (folder / name).mkdir(parents=True)
    pages = [json.dumps({"text": page, "url": f"https://{n}"}) for n, page in enumerate(C4)]
    (folder / "c4/en/c4-validation.json").write_text("\n".join(pages))
    card("c4", "en", "validation", "en/*.json")
    rows = ["", *(line if line.strip() else "" for lines in WIKITEXT.values() for line in lines)]
    pq.write_table(pa.table({"text": rows}), folder / "wikitext/wikitext-103-raw-v1/test.parquet")
    card("wikitext", "wikitext-103-raw-v1", "test", "wikitext-103-raw-v1/test.parquet")
    lines = [json.dumps({"text": text, "meta": {"pile_set_name": part}}) for part, text in PILE]
    (folder / "pile/test.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode()))
    with (folder / "curation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "url", "summary", "article_content"])
        writer.writerows(["title", "https://a", summary, article] for article, summary in SUMMARIES)
    texts = [json.dumps({"text": f"{context} {word}"}) for context, word in LAMBADA]
    (folder / "lambada.jsonl").write_text("\n".join(texts))
    pages = [
        f"<page><title>{title}</title><ns>0</ns><revision><text>{text.replace('<', '&lt;')}</text></revision></page>"
        for title, text in ARTICLES.items()
    ]
    site = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">' + "".join(pages) + "</mediawiki>"
    (folder / "enwiki.xml.bz2").write_bytes(bz2.compress(site.encode()))
    places = {
        "c4": "dataset=c4", "wikitext103": "dataset=wikitext", "pile": "dataset=pile",
        "curation_corpus": "dataset=curation.csv", "lambada": "dataset=lambada.jsonl",
        "wikipedia_september_2021": "path=enwiki.xml.bz2",
    }  # fmt: skip
    named = [(name, *place.split("=")) for name, place in places.items()]
    return [
        override
        for name, key, place in named
        for override in (f"+corpus@corpora.{name}={name}", f"corpora.{name}.{key}={folder / place}")
    ]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Any:
    """Models that were trained and scored on all data sets by one command."""
    folder = tmp_path_factory.mktemp("datasets")
    rows = [*(f"{RHYME * 4}{n}" for n in range(30)), *(prose(100 + n, 40) for n in range(20))]
    (folder / "my.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in rows))
    corpus = {f"my.jsonl:{row}": text for row, text in enumerate(rows, start=1)}
    small = SMALL | {
        "data.sequence_length": str(LENGTH), "evaluation.stride": str(STRIDE), "model.chunk_length": str(CHUNK),
        "retrieval.k": str(K), "schedule.tokens": "25600", "task.longer_baseline": "false",
        "optimizer.lr": "2e-2", "corpus.max_bytes": "null",
    }  # fmt: skip
    overrides = [
        "+experiment=quickstart", "corpus=local", f"corpus.path={folder / 'my.jsonl'}", f"embedder.model={tiny_bert}",
        f"paths.artifacts={folder / 'artifacts'}", "corpus.group_pattern=null", "evaluation.batch_size=3",
        "deduplication=none", "decontamination=none", *(f"{key}={value}" for key, value in small.items()),
        *write_datasets(folder), f"evaluation.datasets=[test,{','.join(expected())}]",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        assert run([*overrides, "name=scored", f"paths.outputs={folder}"], monkeypatch) == 0
    inputs = Inputs(compose(overrides))
    models = {name: open_run(folder / "scored", model=name) for name in ("baseline", "retro")}
    return SimpleNamespace(corpus=corpus, record=load_run(folder / "scored"), inputs=inputs, models=models)


@dataclass
class Counted:
    """What the loop counts."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0
    words: int = 0
    right: int = 0


def tokens_of(tokenizer: Tokenizer, marker: int, text: str, start: int) -> tuple[list[int], int]:
    """Return a document's tokens, and which is the first with a byte of what stands from the character `start` on.

    In a byte-level vocabulary a token is written with one character for each of its bytes.
    """
    encoded = tokenizer.encode(text, add_special_tokens=False)
    end, first = 0, None
    for place, token in enumerate(encoded.tokens, start=1):
        end += len(token)
        if first is None and end > len(text[:start].encode()):
            first = place
    assert end == len(text.encode())
    assert first is not None
    return [marker, *encoded.ids], first


def neighbors_of(inputs: Inputs, store: Any, name: str, chunks: int) -> torch.Tensor:
    """Read the K nearest of each chunk of a document, each with the chunk that follows it there; -1 pads."""
    database = inputs.database
    source = database.source_of(store)
    tokens = np.asarray(source.artifact.array("tokens.npy")).reshape(-1, CHUNK)
    lengths = np.asarray(source.artifact.array("document_length.npy"))
    begins = np.asarray(source.artifact.array("document_start.npy"))
    ids = pq.read_table(store.documents_table)["id"].to_pylist()
    first = int(np.asarray(store.artifact.array("document_start.npy"))[ids.index(name)])
    found = np.full((chunks, K, 2 * CHUNK), -1)
    for chunk in range(chunks):
        for rank, neighbor in enumerate(database.neighbors_of(store).ids[first + chunk][:K].tolist()):
            document = max(n for n, begin in enumerate(begins[:-1]) if begin <= neighbor)
            whole = tokens[begins[document] : begins[document + 1]].ravel()[: lengths[document]]
            text = whole[(neighbor - begins[document]) * CHUNK :][: 2 * CHUNK]
            found[chunk, rank, : len(text)] = text
    return torch.from_numpy(found)


def plain_score(scored: Any, trained: Any, k: int, store: Any, text: Text, ids: list[str]) -> Counted:
    tokenizer, marker = trained.tokenizer.tokenizer, trained.tokenizer.document_marker
    total = Counted()
    for name in ids:
        content, start = text.documents[name]
        part = content[start:]
        total.bytes += len(part.encode())
        total.words += len(part.split()) + (part.count("\n") if text.line_ends else 0)
        tokens, first = tokens_of(tokenizer, marker, content, start)
        retrieved = neighbors_of(scored.inputs, store, name, -(-len(tokens) // CHUNK)) if k else None
        right = True
        for place in range(first, len(tokens)):
            # The first of the windows, at multiples of the stride, that has this token as one of its targets.
            begin = next(begin for begin in range(0, len(tokens), text.stride) if place <= begin + LENGTH)
            context = torch.tensor([tokens[begin:place]])
            neighbors, lengths = None, None
            if retrieved is not None and place - begin >= CHUNK:
                neighbors = retrieved[None, begin // CHUNK : place // CHUNK]
                lengths = (neighbors >= 0).sum(-1)
            with torch.inference_mode():
                logits = trained.model.logits(trained.model(context, neighbors, lengths))[0, -1].double()
            total.nats -= float(logits.log_softmax(0)[tokens[place]])
            total.tokens += 1
            right = right and int(logits.argmax()) == tokens[place]
        total.right += right
    return total


@pytest.mark.parametrize("name", ["test", *expected()])
@pytest.mark.parametrize(("model", "k"), RETRIEVALS)
def test_a_score_is_that_of_a_plain_loop(scored: Any, name: str, model: str, k: int) -> None:
    text = expected()[name] if name in expected() else Text(whole(**scored.corpus))
    held_out = next(found for found in scored.inputs.texts if found.name == name)
    ids = pq.read_table(held_out.store.documents_table)["id"].to_pylist()
    if name in ("test", "c4"):  # a hash of the ids decides which half of them are the test split
        assert 0 < len(ids) < len(text.documents)
    else:
        assert sorted(ids) == sorted(text.documents)
    record = getattr(scored.record, model)
    entry = next(entry for entry in record.evaluations if (entry.text.name, entry.k) == (name, k))
    plain = plain_score(scored, scored.models[model], k, held_out.store, text, ids)
    assert (entry.tokens, entry.bytes, entry.words) == (plain.tokens, plain.bytes, plain.words)
    assert entry.documents == len(ids)
    assert entry.bits_per_byte == pytest.approx(plain.nats / math.log(2) / plain.bytes, rel=1e-5)
    assert entry.perplexity == pytest.approx(math.exp(plain.nats / plain.tokens), rel=1e-4)
    assert entry.word_perplexity == pytest.approx(math.exp(plain.nats / plain.words), rel=1e-4)
    assert entry.text.stride == text.stride
    chunks = scored.record.chunk_scores(record, entry)
    assert chunks.by_document().bytes.tolist() == [
        len(content[start:].encode()) for content, start in map(text.documents.get, ids)
    ]
    if name == "lambada":
        assert entry.accuracy == plain.right / len(ids)
        assert chunks.correct is not None
        assert int(chunks.correct.sum()) == plain.right
    else:
        assert entry.accuracy is None


def test_what_is_guessed_and_what_is_retrieved_makes_a_difference(scored: Any) -> None:
    """Otherwise the comparisons above would hold of a model that guesses nothing, or ignores its neighbors."""
    accuracies = [entry.accuracy for model in scored.record.models for entry in model.evaluations if entry.accuracy]
    assert any(0 < accuracy < 1 for accuracy in accuracies)
    retro = scored.record.retro
    for off, on in pairwise(sorted(retro.evaluations, key=lambda entry: (entry.text.name, entry.k))):
        if off.text == on.text:
            assert abs(off.bits_per_byte - on.bits_per_byte) > 1e-4 * off.bits_per_byte
