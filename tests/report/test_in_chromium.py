"""Pages as a browser has them: from a file, without a network, without complaints, and with working keys."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import screenshots
from folders import AddCell
from inspected import HOSTILE, hostile_document, hostile_examples, shown
from playwright.sync_api import Browser, Page

from retro_lab.report.build import write_run_report, write_sweep_report
from retro_lab.report.inspection import write_inspection
from retro_lab.runs.examples import write_examples
from retro_lab.runs.records import ModelRecord

REQUIRED = "RETRO_LAB_REQUIRE_CHROMIUM"
"""Environment variable with which these tests fail rather than being skipped."""
OWN_TOKENS = "#chunk-2 .own .text span"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = screenshots.chromium()
    if path is None:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(
            "not installed: Chromium (Debian's package chromium)"
        )
    with screenshots.browser(path) as started:
        yield started


@dataclass
class Look:
    """A page in the browser, all that it asked for, and all that the browser had to say about it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def at(self, path: Path) -> Page:
        """Open the page at `path`."""
        self.page.goto(path.resolve().as_uri())
        return self.page


@pytest.fixture
def look(chromium: Browser) -> Iterator[Look]:
    """Check at the end that the page asked for files alone, and that nobody complained."""
    page = chromium.new_page(viewport={"width": 1000, "height": 500})
    look = Look(page)
    page.on("request", lambda request: look.requests.append(request.url))
    page.on("console", lambda message: look.complaints.append(message.text))
    page.on("pageerror", lambda error: look.complaints.append(str(error)))
    page.on("dialog", lambda dialog: look.complaints.append(dialog.message))
    page.on("requestfailed", lambda request: look.complaints.append(request.url))
    yield look
    page.close()
    assert look.requests
    assert all(url.startswith("file:///") for url in look.requests)
    assert look.complaints == []


def images_are_drawn(page: Page) -> bool:
    drawn = page.evaluate("[...document.images].map((image) => image.complete && image.naturalWidth > 0)")
    return bool(drawn) and all(drawn)


def color_of(page: Page, selector: str) -> str:
    return str(page.eval_on_selector(selector, "(element) => getComputedStyle(element).backgroundColor"))


def focused(page: Page) -> str:
    """Return the chunk that has the focus."""
    return str(page.evaluate("document.activeElement.closest('article')?.id ?? ''"))


def test_the_page_of_a_run(run_folder: Path, look: Look) -> None:
    write_examples(run_folder / "retro", hostile_examples())
    page = look.at(write_run_report(run_folder).page)
    assert images_are_drawn(page)
    assert page.title() == run_folder.name
    text = page.inner_text(".beside pre >> nth=0")
    assert text == "\n" + "".join(HOSTILE[:6]) + HOSTILE[1]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_page_of_a_sweep(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord, look: Look
) -> None:
    common = ["+sweep=neighbors", "seed=3"]
    add_cell(["retrieval.k=0", *common], baseline)
    add_cell(["retrieval.k=2", *common], retro)
    add_cell(["retrieval.k=4", *common], error=HOSTILE[1])
    page = look.at(write_sweep_report(sweep_folder).page)
    assert images_are_drawn(page)
    assert page.title() == sweep_folder.name
    page.get_by_role("link", name="open").nth(1).click()
    assert page.title() == "retrieval.k=2"


@pytest.fixture
def inspection(tmp_path: Path, retro: ModelRecord, look: Look) -> Page:
    [path] = write_inspection(tmp_path, retro, "test", "none", [hostile_document()])
    page = look.at(path)
    assert look.requests == [path.as_uri()]  # the one file is all of it
    return page


def test_text_of_the_corpus_stands_there_as_text(inspection: Page) -> None:
    assert inspection.title() == HOSTILE[1]
    assert inspection.text_content("#chunk-2 .own .text") == shown()
    assert inspection.text_content("#chunk-2 .found .text >> nth=0") == shown()
    assert inspection.locator("article").count() == 3
    assert inspection.locator("img, svg, iframe").count() == 0


def test_colors_follow_the_choice_by_pointer_and_by_key(inspection: Page) -> None:
    none = "rgba(0, 0, 0, 0)"
    gain, harm, prefix = (f"{OWN_TOKENS}.{name}" for name in ("gain5.p0", "harm5", "even.p0"))
    found = "#chunk-2 .found .p5"
    assert len({color_of(inspection, gain), color_of(inspection, harm), none}) == 3
    assert color_of(inspection, prefix) == color_of(inspection, found) == none
    inspection.get_by_label("LCP").check()
    assert color_of(inspection, gain) == none
    assert none not in (color_of(inspection, f"{OWN_TOKENS}.p5"), color_of(inspection, found))
    inspection.locator("body").press("c")
    assert color_of(inspection, gain) != none
    inspection.emulate_media(color_scheme="dark")
    assert len({color_of(inspection, gain), color_of(inspection, harm), none}) == 3


def test_a_token_shows_its_numbers_under_the_pointer_and_with_the_focus(inspection: Page) -> None:
    token = inspection.locator(OWN_TOKENS).last
    token.hover()
    assert inspection.inner_text("#readout").split("   ") == [
        '" café Config"', "loss Off 2.000", "loss On 1.300", "Off − On +0.700 nats", "LCP 0",
    ]  # fmt: skip
    inspection.locator(OWN_TOKENS).first.focus()
    assert "loss On 2.700   Off − On −0.700 nats" in inspection.inner_text("#readout")
    inspection.keyboard.press("ArrowRight")
    assert "LCP 1" in inspection.inner_text("#readout")
    inspection.keyboard.press("ArrowLeft")
    assert "LCP 0" in inspection.inner_text("#readout")
    inspection.locator("#chunk-1 .own .text span").first.focus()
    assert inspection.inner_text("#readout").split("   ") == ['"context"', "not scored", "LCP 0"]


def test_keys_lead_from_chunk_to_chunk(inspection: Page) -> None:
    visited = []
    for key in "jjjkkj":
        inspection.keyboard.press(key)
        visited.append(focused(inspection))
    assert visited == ["chunk-1", "chunk-2", "chunk-3", "chunk-2", "chunk-1", "chunk-2"]


def test_search_finds_text_in_any_case_and_steps_through_it(inspection: Page) -> None:
    def matches() -> str:
        return inspection.inner_text("#tally")

    inspection.keyboard.press("/")
    inspection.keyboard.type("CAFÉ conf")  # letters that are commands elsewhere
    assert inspection.input_value("#search") == "CAFÉ conf"
    assert matches() == "5 matches"  # in two chunks and three neighbors, one of which is folded up
    for expected in ("1 of 5 matches", "2 of 5 matches"):
        inspection.keyboard.press("Enter")
        assert matches() == expected
    assert not inspection.locator("details").evaluate("(folds) => folds.open")
    inspection.keyboard.press("Shift+Enter")
    inspection.keyboard.press("Shift+Enter")
    assert matches() == "5 of 5 matches"
    inspection.keyboard.press("Shift+Enter")
    assert inspection.locator("details").evaluate("(folds) => folds.open")
    assert inspection.evaluate("[...CSS.highlights.get('current')].map(String)") == ["café Conf"]
    inspection.fill("#search", "</script><img")  # across nothing but text
    assert matches() == "4 matches"
    inspection.fill("#search", "no such text")
    assert matches() == "0 matches"
    inspection.keyboard.press("Escape")
    inspection.keyboard.press("j")
    assert focused(inspection)
