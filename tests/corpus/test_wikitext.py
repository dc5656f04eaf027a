from pathlib import Path

import pytest
from written_files import read_all, write_parquet

from retro_lab.corpus.sources.wikitext import WikiTextSource

WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "wiki.valid.raw"
ROWS = [
    "",
    " = Sample ( animal ) = \n",
    "",
    " The sample is an animal . \n",
    " = not a heading : a line of text stands before it = \n",
    "",
    " = = Range = = \n",
    "",
    " x = 1 and y = 2 = \n",
    "",
    " = E = mc2 = \n",
    "",
    " Energy is mass . \n",
    "",
]


def rows_of(lines):
    """Rows as the hub has them: a line each, with an empty string for a blank line."""
    return [line if line.strip() else "" for line in lines]


def test_lines_become_articles_with_the_bytes_of_the_original_file(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00001.parquet", text=ROWS)
    first, second = (document for _, document in read_all(WikiTextSource(str(tmp_path))))
    assert (first.id, second.id) == ("train:Sample ( animal )", "train:E = mc2")
    original = "".join(row or " \n" for row in ROWS)
    assert first.text + second.text == original.removeprefix(" \n")
    assert second.text.startswith(" = E = mc2 = \n \n Energy")


def test_the_original_file_is_read_like_the_hubs_rows(tmp_path):
    write_parquet(tmp_path / "hub/test-00000-of-00001.parquet", text=ROWS)
    (tmp_path / "wiki.test.raw").write_text("".join(row or " \n" for row in ROWS))
    only = {"train_split": None, "test_split": "test"}
    hub, raw = (WikiTextSource(str(tmp_path / name), **only) for name in ("hub", "wiki.test.raw"))
    assert read_all(raw) == read_all(hub)


@pytest.mark.parametrize("cut", range(1, len(ROWS)))
def test_an_article_goes_on_from_shard_to_shard(tmp_path, cut):
    write_parquet(tmp_path / "one/train-00000-of-00001.parquet", text=ROWS)
    write_parquet(tmp_path / "two/train-00000-of-00002.parquet", text=ROWS[:cut])
    write_parquet(tmp_path / "two/train-00001-of-00002.parquet", text=ROWS[cut:])
    whole, split = (
        WikiTextSource(str(tmp_path / name), validation_fraction=0.0, test_fraction=0.0) for name in ("one", "two")
    )
    assert split.parts() == 1
    assert read_all(split) == read_all(whole)


def test_each_split_is_a_part(tmp_path):
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", text=ROWS)
    source = WikiTextSource(str(tmp_path), validation_split="validation", max_bytes=1e6)
    assert source.parts() == 2
    assert [document.id for _, document in source.read(1)] == ["validation:Sample ( animal )", "validation:E = mc2"]


def test_the_real_validation_set_has_60_articles(tmp_path):
    if not WIKITEXT.exists():
        pytest.skip(f"{WIKITEXT.name} is not here")
    text = WIKITEXT.read_text(encoding="utf-8")
    write_parquet(tmp_path / "train-00000-of-00001.parquet", text=rows_of(text.splitlines(keepends=True)))
    documents = [document for _, document in read_all(WikiTextSource(str(tmp_path)))]
    assert len(documents) == len({document.id for document in documents}) == 60
    assert documents[0].id == "train:Homarus gammarus"
    assert "".join(document.text for document in documents) == text.removeprefix(" \n")
