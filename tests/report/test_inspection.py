"""Pages of documents and of examples show what the corpus has, and obey none of it."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from folders import write_models
from inspected import HOSTILE, hostile_document, hostile_examples, shown
from test_build import Page

from retro_lab.errors import ArtifactError
from retro_lab.report.build import write_run_report
from retro_lab.report.inspection import write_inspection
from retro_lab.runs.examples import EXAMPLES_NAME, evenly_spaced, load_examples, write_examples
from retro_lab.runs.records import ModelRecord


def test_a_page_for_each_document_that_links_to_the_others(tmp_path: Path, retro: ModelRecord) -> None:
    documents = [hostile_document(3), hostile_document(8)]
    pages = write_inspection(tmp_path, retro, "validation", HOSTILE[0], documents)
    assert [str(page.relative_to(tmp_path)) for page in pages] == [
        f"report/inspect/validation_{number}.html" for number in (3, 8)
    ]
    for page, other in zip(pages, reversed(pages), strict=True):
        found = Page(page)
        assert [address for address in found.addresses if not address.startswith("#")] == [other.name]
        assert "first 3 of its 9 chunks" in " ".join(found.text.split())


def test_text_of_the_corpus_is_shown_and_not_obeyed(tmp_path: Path, retro: ModelRecord) -> None:
    [path] = write_inspection(tmp_path, retro, "test", HOSTILE[0], [hostile_document()])
    page = Page(path)
    assert page.text.count(shown()) == 4  # the chunk, and three neighbors
    assert not page.tags & {"img", "svg"}
    source = path.read_text(encoding="utf-8")
    assert source.count("<script") == source.count("</script") == 1
    assert source.count("<style") == 2
    assert not re.search(r"(src|href)=\"(?!#)", source)


def test_colors_are_clipped_differences_and_classes_of_the_prefix(tmp_path: Path, retro: ModelRecord) -> None:
    [path] = write_inspection(tmp_path, retro, "test", "none", [hostile_document()])
    source = path.read_text(encoding="utf-8")
    found = re.findall(r'<span class="(\w+) (p\d)" tabindex="(?:0|-1)" data-n="(\S+) (\S+) (\d+)">', source)
    assert len(found) == 2 + len(HOSTILE) + 1  # without the marker
    assert found[0] == ("unscored", "p0", "-", "-", "0")
    for color, prefix, off, on, length in found[1:]:
        difference = float(off) - float(on)
        strength = min(5, round(abs(difference) * 10))
        expected = "even" if not strength else f"{'gain' if difference > 0 else 'harm'}{strength}"
        assert (color, prefix) == (expected, f"p{min(5, int(length))}")
    assert {color for color, *_ in found} >= {
        "even",
        *(f"{side}{level}" for side in ("gain", "harm") for level in range(1, 6)),
    }
    assert {prefix for _, prefix, *_ in found} == {f"p{level}" for level in range(6)}


def test_the_runs_page_shows_chunks_beside_their_neighbors(run_folder: Path) -> None:
    assert "beside their neighbors" not in Page(write_run_report(run_folder).page).text
    examples = hostile_examples()
    write_examples(run_folder / "retro", examples)
    assert load_examples(run_folder / "retro") == examples
    page = Page(write_run_report(run_folder).page)
    assert "Chunks beside their neighbors" in page.text
    assert page.text.count("".join(HOSTILE[:6]) + HOSTILE[1]) == 4
    assert not page.tags & {"script", "svg"}
    for text in ("distance 0.125", "distance 2.000", "It has no neighbors.", "test split of <b>mine</b>"):
        assert text in page.text


def test_the_runs_page_links_to_the_pages_of_documents(run_folder: Path, retro: ModelRecord) -> None:
    write_inspection(run_folder, retro, "test", "none", [hostile_document(7)])
    page = Page(write_run_report(run_folder).page)
    assert "inspect/test_7.html" in page.addresses
    assert all((run_folder / "report" / address).is_file() for address in page.addresses)


@pytest.mark.parametrize("content", ["", "[]", '{"text": "a"}', "{"])
def test_damaged_examples_are_named(run_folder: Path, content: str) -> None:
    path = run_folder / "retro" / EXAMPLES_NAME
    path.write_text(content)
    with pytest.raises(ArtifactError, match="delete it") as error:
        write_run_report(run_folder)
    assert str(path) in str(error.value)


def test_a_run_without_a_retro_has_no_examples(tmp_path: Path, baseline: ModelRecord) -> None:
    write_models(tmp_path, baseline)
    assert "beside their neighbors" not in Page(write_run_report(tmp_path).page).text


@pytest.mark.parametrize("chunks", [1, 2, 3, 4, 5, 100])
def test_chunks_are_spaced_evenly_and_none_comes_twice(chunks: int) -> None:
    found = evenly_spaced(chunks, 3)
    assert len(set(found)) == len(found) == min(chunks, 3)
    assert set(found) <= set(range(chunks))
    gaps = [after - before for before, after in pairwise([-found[0], *found, 2 * chunks - found[-1]])]
    assert max(gaps) - min(gaps) <= 2
