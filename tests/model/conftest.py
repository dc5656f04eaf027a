"""What the tests of the model show, told in the summary: what each file claims and how many of its tests hold."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line for each file of this folder that was run."""
    counts: dict[Path, list[str]] = defaultdict(list)
    for outcome in ("passed", "failed", "error", "skipped"):
        names = [report.nodeid.partition("::")[0] for report in terminalreporter.stats.get(outcome, [])]
        for name in sorted(set(names)):
            if (path := FOLDER / Path(name).name).is_file() and Path(name).parent.name == FOLDER.name:
                counts[path].append(f"{names.count(name)} {outcome}")
    if not counts:
        return
    terminalreporter.section("the model is the paper's")
    for path, outcomes in sorted(counts.items()):
        claim = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        terminalreporter.write_line(f"{', '.join(outcomes):>12}  {path.name}: {claim.partition(chr(10))[0]}")
