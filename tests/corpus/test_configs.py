"""Every file of conf/corpus composes, and reads a small folder in the layout of the dataset that it names."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from written_files import read_all, write_lines, write_parquet

from retro_lab.config.session import register
from retro_lab.corpus.documents import SPLITS
from retro_lab.corpus.sources.wikipedia import HELD_OUT_ELSEWHERE

CONF = Path(__file__).parents[2] / "conf"


def source(*overrides):
    """Compose the corpus group alone and make its source."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(overrides=list(overrides)).corpus)


def card(folder, subset, **files):
    """Write the card that tells the hub which files are a subset's splits."""
    lines = [f"  - split: {split}\n    path: {pattern}" for split, pattern in files.items()]
    text = "\n".join(["---", "configs:", f"- config_name: {subset}", "  data_files:", *lines, "---"])
    (folder / "README.md").write_text(text)


@pytest.fixture
def c4(tmp_path):
    folder = tmp_path / "c4"
    record = {"timestamp": "2019-04-25T12:57:54Z"}
    for shard in range(2):
        rows = ({"text": f"page {shard} {n}", "url": f"https://{shard}/{n}"} | record for n in range(50))
        write_lines(folder / f"en/c4-train.{shard:05d}-of-00002.json.gz", *rows)
    write_lines(
        folder / "en/c4-validation.00000-of-00001.json.gz", {"text": "held" * 15, "url": "https://held"} | record
    )
    card(folder, "en", train="en/c4-train.*.json.gz", validation="en/c4-validation.*.json.gz")
    return folder


def wikipedia_of(folder, subset):
    """Write the Wikipedia of one language."""
    articles = {"id": [str(n) for n in range(100)], "text": [f"article {n}" for n in range(100)]}
    titles = ["Title" if n else "Dick Tracy's half-life, 1,000" for n in range(100)]
    write_parquet(folder / subset / "train-00000-of-00001.parquet", title=titles, **articles)
    card(folder, subset, train=f"{subset}/train-*")
    return folder


@pytest.fixture
def wikipedia(tmp_path):
    return wikipedia_of(tmp_path / "wikipedia", "20231101.en")


@pytest.fixture
def wikitext(tmp_path):
    """WikiText-103 with an article of the same title in its training and its test split."""
    folder = tmp_path / "wikitext"
    titles = {"train": "Title", "validation": "Other", "test": "Dick Tracy 's half @-@ life , 1 @,@ 000"}
    for split, title in titles.items():
        rows = ["", f" = {title} = \n", "", " Text . \n"]
        write_parquet(folder / f"wikitext-103-raw-v1/{split}-00000-of-00001.parquet", text=rows)
    card(folder, "wikitext-103-raw-v1", **{split: f"wikitext-103-raw-v1/{split}-*" for split in titles})
    return folder


def test_c4(c4):
    pairs = read_all(source("+corpus=c4", f"corpus.dataset={c4}"))
    assert len(pairs) == 101
    assert [document.id for split, document in pairs if split != "train"] == ["https://held"]


def test_wikipedia_leaves_out_what_wikitext103_holds_out(wikipedia, wikitext):
    folders = [f"corpus.dataset={wikipedia}", f"corpus.without.dataset={wikitext}"]
    without = source("+corpus=wikipedia", *folders)
    found = [(document.id, document.problem) for _, document in read_all(without)]
    assert found == [("0", HELD_OUT_ELSEWHERE), *((str(n), None) for n in range(1, 100))]
    whole = source("+corpus=wikipedia", folders[0], "corpus.without=null")
    pairs = read_all(whole)
    assert all(document.problem is None for _, document in pairs)
    assert without.identity() != whole.identity()
    assert [document.id for _, document in pairs] == [str(n) for n in range(100)]
    assert {split for split, _ in pairs} == {*SPLITS}


def test_wikitext103(tmp_path):
    rows = ["", " = One = \n", "", " First . \n", "", " = Two = \n", "", " Second . \n"]
    for split in SPLITS:
        write_parquet(tmp_path / f"wikitext-103-raw-v1/{split}-00000-of-00001.parquet", text=rows)
    card(tmp_path, "wikitext-103-raw-v1", **{s: f"wikitext-103-raw-v1/{s}-*" for s in SPLITS})
    pairs = read_all(source("+corpus=wikitext103", f"corpus.dataset={tmp_path}"))
    assert [(split, document.id) for split, document in pairs] == [
        ("train", "train:One"),
        ("train", "train:Two"),
        ("validation", "validation:One"),
        ("validation", "validation:Two"),
        ("test", "test:One"),
        ("test", "test:Two"),
    ]


def test_pile(tmp_path):
    for name in ("train/00", "train/01", "val", "test"):
        write_lines(tmp_path / f"{name}.jsonl.zst", {"text": name, "meta": {"pile_set_name": "Pile-CC"}})
    pairs = read_all(source("+corpus=pile", f"corpus.dataset={tmp_path}"))
    assert [(split, document.text) for split, document in pairs] == [
        ("train", "train/00"),
        ("train", "train/01"),
        ("validation", "val"),
        ("test", "test"),
    ]


@pytest.fixture
def others(tmp_path):
    """Books, news and code."""
    write_parquet(tmp_path / "books/train-00000-of-00001.parquet", text=["a book"] * 100, url=["u"] * 100)
    write_parquet(tmp_path / "news/train-00000-of-00001.parquet", text=["some news"] * 100, url=["u"] * 100)
    write_lines(tmp_path / "github/file-1.json.gz", *({"content": "import os\n", "hash": "h"} for _ in range(100)))
    return {name: tmp_path / name for name in ("books", "news", "github")}


def mixed(corpus, folders, *overrides):
    """Compose a mixture of `folders`; return it and the bytes of text from each."""
    places = [f"corpus.sources.{name}.dataset={folder}" for name, folder in folders.items()]
    mixture = source(f"+corpus={corpus}", *places, *overrides)
    taken = dict.fromkeys(folders, 0)
    for _, document in read_all(mixture):
        taken[document.source] += len(document.text)
    return mixture, taken


def test_massivetext_like_mixes_by_the_papers_weights(c4, wikipedia, wikitext, others):
    folders = {"web": c4, "wikipedia": wikipedia} | others
    wikitext103 = f"corpus.sources.wikipedia.without.dataset={wikitext}"
    _, taken = mixed("massivetext_like", folders, wikitext103, "corpus.max_bytes=1000")
    expected = {"web": 550, "books": 250, "news": 100, "wikipedia": 50, "github": 50}
    assert taken == pytest.approx(expected, abs=30)  # each shard may end in the middle of a document


def test_the_database_holds_four_percent_of_the_books(c4, wikipedia, others):
    folders = {"web": c4, "wikipedia": wikipedia} | others
    mixture, _ = mixed("massivetext_database_like", folders, "corpus.sources.wikipedia.without=null")
    assert mixture.fractions == {"books": 0.04}
    assert sum(mixture.weights.values()) == pytest.approx(1_739_662, rel=1e-4)  # the paper's tokens, in millions


def test_massivetext_multilingual_like_has_the_papers_weights(tmp_path, c4, wikipedia, others):
    languages = ["en", "ru", "es", "zh", "fr", "de", "pt", "it", "sw", "ur"]
    folders = {}
    for language in languages:
        folders[f"wikipedia_{language}"] = wikipedia_of(tmp_path / f"wiki_{language}", f"20231101.{language}")
        folders[f"web_{language}"] = c4
        if language != "en":
            folders[f"web_{language}"] = tmp_path / f"c4_{language}"
            write_lines(folders[f"web_{language}"] / "train.json.gz", {"text": language, "url": language})
            write_lines(folders[f"web_{language}"] / "held.json.gz", {"text": "held", "url": "held"})
            card(folders[f"web_{language}"], language, train="train.json.gz", validation="held.json.gz")
    without = "corpus.sources.wikipedia_en.without=null"
    mixture, taken = mixed("massivetext_multilingual_like", folders | others, without, "corpus.max_bytes=10000")
    assert all(taken.values())
    assert sum(mixture.weights.values()) == pytest.approx(1.0005)
    of = lambda kind: sum(weight for name, weight in mixture.weights.items() if name.startswith(kind))  # noqa: E731
    assert of("web") == pytest.approx(0.55, abs=0.001)
    assert of("wikipedia") == pytest.approx(0.05, abs=0.001)


def test_local(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"text": "one"})
    assert [document.text for _, document in read_all(source("+corpus=local", f"corpus.path={path}"))] == ["one"]


def test_python_source():
    found = source("+corpus=python_source", "corpus.max_bytes=1e5")
    assert next(found.read(0))[1].id.startswith("transformers/models/")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "corpus").glob("*.yaml")))
def test_a_mistyped_key_is_refused(name):
    with pytest.raises(ConfigCompositionException, match=r"Could not override 'corpus\.data_set'"):
        source(f"+corpus={name}", "corpus.data_set=x")
    assert (CONF / "corpus" / f"{name}.yaml").read_text().startswith("# ")
