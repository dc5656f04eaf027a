"""Take a picture of a page of a report for docs/: `python tools/screenshots.py PAGE.html docs/NAME.png [--dark]`.

It needs Chromium and playwright, which drives it: `apt-get install chromium` and `pip install playwright`.
"""

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Return the path of the Chromium of this machine; None if it has none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser(executable: str) -> Iterator[Browser]:
    """Start a Chromium without windows; its sandbox does not work for root."""
    with sync_playwright() as library:
        started = library.chromium.launch(executable_path=executable, chromium_sandbox=os.getuid() != 0)
        try:
            yield started
        finally:
            started.close()


def main() -> None:
    """Take the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true", help="as on a dark screen")
    parser.add_argument("--width", type=int, default=1280, help="pixels")
    parser.add_argument("--height", type=int, default=800, help="pixels; the page may be longer")
    parser.add_argument("--focus", help="CSS selector of the element to move to first, such as '#chunk-3 .own span'")
    arguments = parser.parse_args()
    executable = chromium()
    if executable is None:
        parser.exit(2, "error: no Chromium is installed: apt-get install chromium\n")
    with browser(executable) as started:
        page = started.new_page(
            viewport={"width": arguments.width, "height": arguments.height},
            color_scheme="dark" if arguments.dark else "light",
        )
        page.goto(arguments.page.resolve().as_uri())
        if arguments.focus:
            page.locator(arguments.focus).first.focus()
        page.screenshot(path=arguments.picture)


if __name__ == "__main__":
    main()
