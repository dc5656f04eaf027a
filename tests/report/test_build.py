"""A report is made from folders alone, escapes what it shows, and replaces an earlier one whole."""

import csv
import re
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from folders import TEST, AddCell, evaluation, write_models

from retro_lab.errors import ArtifactError
from retro_lab.report.build import write_run_report, write_sweep_report
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.records import ModelRecord

HOSTILE = "<script>alert('x')</script>&[red]"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects texts, links and images."""

    def __init__(self, path: Path) -> None:
        """Read the page at `path`."""
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a tag, unless it has no end tag."""
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost tag."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect text."""
        self.text += data


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_gets_a_page_with_tables_and_figures(run_folder: Path) -> None:
    report = write_run_report(run_folder)
    assert set(files(run_folder / "report")) == {
        "index.html",
        "figures/curve.svg",
        "figures/curve.png",
        "figures/leakage.svg",
        "figures/leakage.png",
        "figures/overlap_1.svg",
        "figures/overlap_1.png",
        "figures/overlaps.svg",
        "figures/overlaps.png",
        "tables/comparison.csv",
        "tables/comparison.md",
        "tables/leakage.csv",
        "tables/leakage.md",
    }
    assert sorted(report.paths) == sorted(path for path in (run_folder / "report").rglob("*") if path.is_file())
    page = Page(report.page)
    for text in ("RETRO[On]", "+5.0%", "400k tokens", "22k chunks", "50.0% of the training split", "99.9%", "abc123"):
        assert text in page.text
    for text in (
        "+experiment=quickstart",
        "2 x AMD EPYC",
        "torch 2.13.0",
        "stored: ${seed}",
        "seed 0",
    ):
        assert text in page.text
    assert all((report.page.parent / address).is_file() for address in page.addresses)
    assert len(re.findall(r"The gain does not need copied text: .* at r\(C\) <= 0\.125", page.text)) == 2


def test_what_was_dropped_and_how_similar_training_text_is_are_said(run_folder: Path) -> None:
    page = Page(write_run_report(run_folder).page).text
    assert "1,234 documents dropped, from a similarity of 0.8 on" in page
    assert "test split: median similarity 0.01, largest 0.74" in page


def test_figures_are_valid_files(run_folder: Path) -> None:
    write_run_report(run_folder)
    figures = run_folder / "report" / "figures"
    png = (figures / "curve.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", png[16:24]) == (1280, 704)
    assert ElementTree.parse(figures / "curve.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_second_report_is_the_same_byte_for_byte(run_folder: Path) -> None:
    write_run_report(run_folder)
    first = files(run_folder / "report")
    write_run_report(run_folder)
    assert files(run_folder / "report") == first


def test_figures_of_an_earlier_report_do_not_stay(run_folder: Path, retro: ModelRecord) -> None:
    write_models(run_folder, replace(retro, evaluations=(*retro.evaluations, evaluation(9, 1.7))))
    write_run_report(run_folder)
    assert (run_folder / "report" / "figures" / "neighbors.svg").exists()
    assert (run_folder / "report" / "tables" / "leakage.csv").exists()
    write_models(run_folder, replace(retro, evaluations=(evaluation(0, 2.1),)))
    write_run_report(run_folder)
    assert not (run_folder / "report" / "figures" / "neighbors.svg").exists()
    assert not (run_folder / "report" / "tables" / "leakage.csv").exists()


def test_an_interrupted_report_leaves_the_earlier_page(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_run_report(run_folder).page
    before = page.read_bytes()

    def interrupt(source: Path, target: Path) -> None:
        if Path(target).name == "index.html":
            raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_run_report(run_folder)
    assert page.read_bytes() == before


def test_everything_from_outside_is_escaped(tmp_path: Path, retro: ModelRecord) -> None:
    folder = tmp_path / HOSTILE.replace("/", "")
    hostile = replace(
        retro,
        size=HOSTILE,
        corpus=replace(retro.corpus, source=HOSTILE),
        provenance=replace(retro.provenance, command=HOSTILE, hardware=HOSTILE, versions={HOSTILE: HOSTILE}),
    )
    write_models(folder, hostile)
    RunFolder(folder, (), {"name": HOSTILE}).note()
    (folder / "failed.json").write_text(f'{{"error": "{HOSTILE}"}}')
    page = Page(write_run_report(folder).page)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 6


def test_bytes_that_are_no_text_do_not_stop_a_report(run_folder: Path, retro: ModelRecord) -> None:
    write_models(run_folder, replace(retro, provenance=replace(retro.provenance, command="run \udcff")))
    assert "run \\udcff" in write_run_report(run_folder).page.read_text(encoding="utf-8")


def test_settings_are_shown_as_they_were_written(run_folder: Path) -> None:
    RunFolder(run_folder, ("+experiment=mine",), {"key": "${oc.env:SECRET}", "other": "${key}"}).note()
    text = Page(write_run_report(run_folder).page).text
    assert "key: ${oc.env:SECRET}" in text
    assert "+experiment=mine" in text


def test_unequal_comparisons_are_said_to_be(run_folder: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    write_models(
        run_folder,
        replace(baseline, tokens=2_000_000),
        replace(retro, evaluations=(evaluation(0, 2.1, size_bytes=5),)),
    )
    text = Page(write_run_report(run_folder).page).text
    assert "trained on 2M tokens and RETRO on 1M" in text
    assert "not scored on the same held-out text" in text
    assert "not evaluated with the k = 2" in text
    assert "1.5M (30%) more parameters" in text


def test_unequal_compute_is_said(run_folder: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    page = Page(write_run_report(run_folder).page).text
    text = " ".join(page.split())
    assert (
        "RETRO took 2.39 times the FLOPs of its baseline to train, and takes 2.39 times as many for each byte" in text
    )
    for fact in ("Training FLOPs 3T 7.17T", "FLOPs per byte 1M (test split of python_source, k = 0) 2.39M"):
        assert fact in text
    same = tuple(replace(entry, flops_per_byte=1e6) for entry in retro.evaluations)
    write_models(run_folder, replace(retro, flops=baseline.flops, evaluations=same))
    assert "times the FLOPs" not in Page(write_run_report(run_folder).page).text


def test_what_intervals_are_worth_is_said(run_folder: Path, baseline: ModelRecord, retro: ModelRecord) -> None:
    def page() -> str:
        return " ".join(Page(write_run_report(run_folder).page).text.split())

    assert "intervals come from 12 documents" in page()
    assert "fewer than 30 documents" in page()
    assert "not distinguishable from zero" not in page()
    write_models(run_folder, replace(retro, evaluations=(evaluation(2, 1.999), evaluation(0, 2.1))))
    assert "The gain of RETRO[On] is not distinguishable from zero" in page()
    for model in (baseline, retro):
        write_models(
            run_folder, replace(model, evaluations=tuple(replace(entry, documents=1) for entry in model.evaluations))
        )
    assert "a single document" in page()
    assert "intervals come from" not in page()


def test_a_sweep_counts_the_gains_that_may_be_none(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    add_cell(["retrieval.k=0"], baseline)
    add_cell(["retrieval.k=2"], retro)
    add_cell(["retrieval.k=4"], replace(retro, k=4, evaluations=(evaluation(4, 1.999),)))
    text = " ".join(Page(write_sweep_report(sweep_folder).page).text.split())
    assert "1 of 2 gains are not distinguishable from zero" in text


def test_damaged_scores_of_documents_fail_their_cell_alone(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    add_cell(["retrieval.k=2"], baseline, retro)
    damaged = add_cell(["retrieval.k=4"], baseline, retro) / "retro" / retro.evaluations[0].scores
    damaged.write_bytes(b"")
    failures = write_sweep_report(sweep_folder).failures
    assert list(failures) == ["retrieval.k=4"]
    assert str(damaged) in failures["retrieval.k=4"]


def test_a_tokenizer_that_loses_text_is_named(run_folder: Path, baseline: ModelRecord) -> None:
    assert "too low" not in Page(write_run_report(run_folder).page).text
    write_models(
        run_folder, replace(baseline, evaluations=(evaluation(0, 2.0, text=replace(TEST, altered_documents=3)),))
    )
    text = " ".join(Page(write_run_report(run_folder).page).text.split())
    assert "text of 3 of 12 documents (test split of python_source): bits per byte are too low" in text


def test_a_run_without_a_baseline_says_so(tmp_path: Path, retro: ModelRecord) -> None:
    write_models(tmp_path, retro)
    assert "No baseline was trained" in Page(write_run_report(tmp_path).page).text


def test_an_empty_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no finished model"):
        write_run_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_sweep_page_shows_every_cell_and_links_to_their_pages(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    common = ["+sweep=neighbors", "seed=3"]
    add_cell(["retrieval.k=0", *common], baseline)
    add_cell(["retrieval.k=2", *common, "name='a <b>#?%41'"], retro)
    add_cell(["retrieval.k=4", *common], error=f"Traceback\n{HOSTILE}")
    report = write_sweep_report(sweep_folder)
    page = Page(report.page)
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert "2 done, 1 failed, 2 missing" in " ".join(page.text.split())
    cells = [address for address in page.addresses if address.startswith("../")]
    assert len(cells) == 2
    assert all((report.page.parent / unquote(address)).is_file() for address in cells)
    assert list(report.failures) == ["retrieval.k=4"]
    with (sweep_folder / "report" / "tables" / "comparison.csv").open(encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done", "done", "missing", "failed", "missing"]


def test_a_sweep_of_one_number_gets_a_figure(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    common = ["+sweep=neighbors", "seed=3"]
    add_cell(["retrieval.k=0", *common], baseline)
    add_cell(["retrieval.k=2", *common], retro)
    write_sweep_report(sweep_folder)
    assert (sweep_folder / "report" / "figures" / "sweep.svg").is_file()
