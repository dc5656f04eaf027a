"""The table of docs/reproduce.md: for each sweep its command, its cells, and what its training costs at paper scale.

    python tools/reproduce.py

The last column, what the mini scale showed, is written by hand and stays.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from omegaconf import DictConfig

from retro_lab.config import catalog
from retro_lab.config.check import typed
from retro_lab.config.corpora import missing_corpora
from retro_lab.config.roots import PACKAGE
from retro_lab.config.session import session
from retro_lab.config.sweeps import cells, fixed
from retro_lab.cost.flops import TRAINING_TO_FORWARD, device_hours
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.plan import Plan
from retro_lab.tasks.task_config import CompareConfig, PlanConfig
from retro_lab.training.config import Init

DOCUMENT = PACKAGE.parent / "docs" / "reproduce.md"
SCALES = ("mini", "paper")
TABLE = re.compile(r"(?<=<!-- sweeps -->\n\n).*?(?=\n\n<!-- end -->)", re.DOTALL)
HEAD = (
    "What",
    "Command, `python -m retro_lab ...`",
    "Cells, mini",
    "Cells, paper",
    "GPU hours, paper",
    "What mini showed",
)
NOTHING_YET = "–"


@dataclass
class Count:
    """Cells of a sweep at one scale, and the hours of one device to train their models."""

    cells: int = 0
    hours: float = 0.0


def composed(sweep: str, scale: str) -> Iterator[tuple[list[str], DictConfig]]:
    """Yield the overrides of each cell of a sweep, and what they come to, with its `hydra` node."""
    overrides = [f"+sweep={sweep}", f"scale={scale}"]
    with session() as assemble:
        added: list[str] = []
        for cell in cells(assemble(fixed(overrides)), overrides):
            config = assemble([*cell, *added])
            if missing := missing_corpora([config]):
                added += missing
                config = assemble([*cell, *added])
            yield cell, config


def training_hours(config: RunConfig) -> float:
    """Return the GPU hours to train the models of a run, as `task=plan` estimates them with its default devices."""
    plan, device = Plan.of(config), PlanConfig()
    ks = [config.retrieval.k]
    if isinstance(config.task, CompareConfig):
        ks.append(0)
        if config.task.longer_baseline and config.init.name is Init.scratch:
            ks.append(config.retrieval.k)  # the longer baseline takes the FLOPs of RETRO
    flops = sum(TRAINING_TO_FORWARD * plan.flops_per_token(k).total * plan.tokens for k in ks)
    return device_hours(flops, device.peak_tflops, device.utilization)


def row(sweep: str, counts: Mapping[str, Count], shown: str) -> str:
    """Return a sweep's row of the table.

    Args:
        sweep: Its name.
        counts: Its cells by scale.
        shown: What the mini scale showed.
    """
    what = catalog.describe(catalog.options("sweep")[sweep]).removesuffix(".")
    mini, paper = (counts[scale] for scale in SCALES)
    return _line([what, f"`+sweep={sweep}`", str(mini.cells), str(paper.cells), f"{paper.hours:,.0f}", shown])


def shown_at_mini(text: str) -> dict[str, str]:
    """Return the last column of the table in a text, by sweep."""
    found = TABLE.search(text)
    rows = [line.strip("| ").split(" | ") for line in found[0].splitlines()[2:]] if found else []
    return {row[1].strip("`").removeprefix("+sweep="): row[-1] for row in rows}


def table(counts: Mapping[str, Mapping[str, Count]], shown: Mapping[str, str]) -> str:
    """Return the table, of the sweeps in `counts`."""
    rule = "| :--- | :--- | ---: | ---: | ---: | :--- |"
    return "\n".join(
        [_line(HEAD), rule, *(row(sweep, found, shown.get(sweep, NOTHING_YET)) for sweep, found in counts.items())]
    )


def main() -> None:
    """Write the table anew."""
    counts: dict[str, dict[str, Count]] = {}
    for sweep in catalog.options("sweep"):
        for scale in SCALES:
            count = counts.setdefault(sweep, {}).setdefault(scale, Count())
            for _, composition in composed(sweep, scale):
                count.cells += 1
                count.hours += training_hours(typed(composition, resolve_all=False))
    text = DOCUMENT.read_text(encoding="utf-8")
    written = table(counts, shown_at_mini(text))
    DOCUMENT.write_text(TABLE.sub(lambda _: written, text), encoding="utf-8")


def _line(columns: Iterable[str]) -> str:
    return f"| {' | '.join(columns)} |"


if __name__ == "__main__":
    main()
