"""The page to try search and generation on: one file, with the look of the pages of a report.

It asks its own server alone for anything, and texts are only ever shown as text. The browser runs the page's own script
alone, known by its checksum.
"""

import base64
import hashlib

from markupsafe import Markup

from retro_lab.report.pages import TEMPLATES, render
from retro_lab.serving.bodies import DEFAULT_TOKENS, Limits
from retro_lab.serving.engine import Facts

SCRIPT = (TEMPLATES / "serving.js").read_text(encoding="utf-8")
DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{DIGEST}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page."""
SHOWN_NEIGHBORS = 4
"""Neighbors that the page asks for at first."""


def page(facts: Facts, limits: Limits) -> str:
    """Return the page of a run."""
    return render(
        "serving.html.j2",
        title=facts.run,
        facts=facts,
        limits=limits,
        tokens=min(DEFAULT_TOKENS, limits.max_tokens),
        neighbors=min(SHOWN_NEIGHBORS, facts.max_neighbors),
        script=Markup(SCRIPT),
    )
