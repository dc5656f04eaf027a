"""Every cell of every sweep, at every scale, is a run that could start: it composes, fits together, and has a model.

Nothing is read or built: models are built on the meta device, and costs are arithmetic.
"""

from collections.abc import Iterator
from itertools import product

import pytest
from hydra.utils import get_class
from omegaconf import DictConfig

from retro_lab.config import catalog
from retro_lab.config.check import check, typed
from retro_lab.config.corpora import missing_corpora
from retro_lab.config.session import session
from retro_lab.config.sweeps import cell_folder, cells, fixed, varied_keys
from retro_lab.corpus.documents import SPLITS
from retro_lab.tasks.checks import check_batch
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.plan import Plan
from retro_lab.training.config import Init

SCALES = ("mini", "paper")
FIRST_OF_ITS_ARTIFACT = {
    "table13": 15,  # its rows
    "table14": 4,  # sizes
    "figure1_left": 4,
    "figure5": 8,  # and their RETROfits
    "table15": 1,
}
"""Cells of some sweeps: what the paper's artifact has."""


@pytest.fixture(scope="module")
def count() -> dict[tuple[str, str], int]:
    """Cells by sweep and scale."""
    return {}


def composed(sweep: str, scale: str) -> Iterator[tuple[list[str], DictConfig]]:
    """Yield the overrides of each cell, and what they come to."""
    overrides = [f"+sweep={sweep}", f"scale={scale}"]
    with session() as assemble:
        added: list[str] = []
        for cell in cells(assemble(fixed(overrides)), overrides):
            config = assemble([*cell, *added])
            if missing := missing_corpora([config]):
                added += missing
                config = assemble([*cell, *added])
            yield cell, config


@pytest.mark.parametrize(("sweep", "scale"), list(product(catalog.options("sweep"), SCALES)))
def test_every_sweep(sweep: str, scale: str, count: dict[tuple[str, str], int]) -> None:
    folders, starts = [], []
    for cell, composition in composed(sweep, scale):
        check(composition)
        config = typed(composition, resolve_all=False)
        assert config.scale.name == scale
        folders.append(f"{composition.hydra.sweep.dir}/{cell_folder(cell, varied_keys(composition, ()))}")
        starts += [config.init.checkpoint] * (config.init.checkpoint is not None)
        assert_trainable(config)
    assert folders
    assert len(set(folders)) == len(folders)
    assert set(starts) <= {f"{folder}/baseline" for folder in folders}
    assert len(folders) == FIRST_OF_ITS_ARTIFACT.get(sweep, len(folders))
    count[sweep, scale] = len(folders)


def assert_trainable(config: RunConfig) -> None:
    """Build the model without weights, count what it costs, and divide its text into sequences, windows and steps."""
    plan = Plan.of(config)  # which also checks the trainer
    k, ks = config.retrieval.k, config.evaluation.k
    assert bool(k) == bool(plan.parameters.retrieval)
    assert plan.flops_per_token(k).total > 0
    assert max(k, *ks) <= config.retrieval.stored
    assert config.schedule.tokens >= config.data.tokens_per_step
    assert check_batch(config, devices=1) == (config.data.micro_batch_size or config.data.batch_size)
    texts = [name for name in config.evaluation.datasets if name not in SPLITS]
    assert texts == [name for name in texts if name in config.corpora]
    for corpus in (config.corpus, *config.corpora.values()):
        assert get_class(corpus._target_)
    if config.init.name is Init.retrofit and config.task.name == "train":
        assert config.init.checkpoint is not None


def test_every_sweep_counts(count: dict[tuple[str, str], int], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        for scale in SCALES:
            cells_of = {sweep: number for (sweep, at), number in count.items() if at == scale}
            print(f"\nscale={scale}: {sum(cells_of.values())} cells of {len(cells_of)} sweeps", end="")
    assert all(count.values())


def test_a_scale_is_one_override_and_others_apply_on_top() -> None:
    overrides = ["+sweep=table14", "scale=paper", "corpus=local", "corpus.path=my.jsonl", "evaluation.datasets=[test]"]
    with session() as assemble:
        found = [*cells(assemble(overrides), [*overrides, "size=172m,7_5b"])]
        assert [cell[1] for cell in found] == ["size=172m", "size=7_5b"]
        config = typed(assemble(found[1]), resolve_all=False)
    assert (config.size.name, config.data.batch_size, config.optimizer.lr) == ("7_5b", 1024, 1e-4)
    assert (config.corpus_name, config.evaluation.datasets, config.retrieval.k) == ("local", ["test"], 2)
