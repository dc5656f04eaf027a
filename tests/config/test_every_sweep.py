"""Every cell of every sweep, at every scale, is a run that could start: it composes, fits together, and has a model.

Nothing is read or built: models are built on the meta device, and costs are arithmetic.
"""

from itertools import pairwise, product

import pytest
from hydra.utils import get_class
from reproduce import DOCUMENT, SCALES, Count, composed, row, shown_at_mini, training_hours

from retro_lab.config import catalog
from retro_lab.config.check import check, typed
from retro_lab.config.compose import compose
from retro_lab.config.session import session
from retro_lab.config.sweeps import cell_folder, cells, varied_keys
from retro_lab.corpus.documents import SPLITS
from retro_lab.tasks.checks import check_batch
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.plan import Plan
from retro_lab.training.config import Init

OF_THE_PAPER = {
    "table13": 15,  # its rows
    "table14": 4,  # sizes
    "figure1_left": 4,
    "figure5": 8,  # and their RETROfits
    "table15": 1,
}
"""Cells of some sweeps: what the paper's artifact has."""


@pytest.fixture(scope="module")
def counts() -> dict[str, dict[str, Count]]:
    """Cells and training hours by sweep and scale."""
    return {}


@pytest.mark.parametrize(("sweep", "scale"), list(product(catalog.options("sweep"), SCALES)))
def test_every_sweep(sweep: str, scale: str, counts: dict[str, dict[str, Count]]) -> None:
    folders, starts, hours = [], [], 0.0
    for cell, composition in composed(sweep, scale):
        check(composition)
        config = typed(composition, resolve_all=False)
        assert config.scale.name == scale
        folders.append(f"{composition.hydra.sweep.dir}/{cell_folder(cell, varied_keys(composition, ()))}")
        starts += [config.init.checkpoint] * (config.init.checkpoint is not None)
        assert_trainable(config)
        hours += training_hours(config)
    assert folders
    assert len(set(folders)) == len(folders)
    assert set(starts) <= {f"{folder}/baseline" for folder in folders}
    assert len(folders) == OF_THE_PAPER.get(sweep, len(folders))
    counts.setdefault(sweep, {})[scale] = Count(len(folders), hours)


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
    assert all(name.partition("/")[0] in config.corpora for name in texts)
    for corpus in (config.corpus, *config.corpora.values()):
        assert get_class(corpus._target_)
    if config.init.name is Init.retrofit and config.task.name == "train":
        assert config.init.checkpoint is not None


def test_every_sweep_is_in_the_document(
    counts: dict[str, dict[str, Count]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the sweeps whose cells the tests above have counted; a worker of several may have had some of them only."""
    whole = {sweep: found for sweep, found in counts.items() if set(found) == set(SCALES)}
    with capsys.disabled():
        for scale in SCALES:
            print(
                f"\nscale={scale}: {sum(found[scale].cells for found in whole.values())} cells of {len(whole)} sweeps"
            )
    text = DOCUMENT.read_text(encoding="utf-8")
    shown = shown_at_mini(text)
    assert list(shown) == list(catalog.options("sweep"))
    missing = [line for sweep, found in whole.items() if (line := row(sweep, found, shown[sweep])) not in text]
    assert not missing, "`python tools/reproduce.py` mends these:\n" + "\n".join(missing)


def test_a_scale_is_one_override_and_others_apply_on_top() -> None:
    overrides = ["+sweep=table14", "scale=paper", "corpus=local", "corpus.path=my.jsonl", "evaluation.datasets=[test]"]
    with session() as assemble:
        found = [*cells(assemble(overrides), [*overrides, "size=172m,7_5b"])]
        assert [cell[1] for cell in found] == ["size=172m", "size=7_5b"]
        config = typed(assemble(found[1]), resolve_all=False)
    assert (config.size.name, config.data.batch_size, config.optimizer.lr) == ("7_5b", 1024, 1e-4)
    assert (config.corpus_name, config.evaluation.datasets, config.retrieval.k) == ("local", ["test"], 2)


def test_the_sizes_of_scale_mini_hold_their_names() -> None:
    """0.5M, 1.4M, 4M and 12M without embeddings, each about three times the one before; encoders grow along."""
    plans = [Plan.of(compose(["+experiment=mini", f"size={size}"])) for size in ("0_5m", "1_4m", "4m", "12m")]
    counts = [plan.parameters.parts["non_embedding"] for plan in plans]
    assert counts == pytest.approx([0.5e6, 1.4e6, 4e6, 12e6], rel=0.1)
    assert all(2.5 < larger / smaller < 3.5 for smaller, larger in pairwise(counts))
    assert [plan.size.encoder_width for plan in plans] == [plan.size.width for plan in plans]


def test_a_retrofit_starts_from_the_baseline_of_its_own_sweep_and_seed() -> None:
    overrides = ["+sweep=figure5", "size=4m", "variant=retrofit", "seed=3", "hydra.sweep.subdir='${cell_name:seed}'"]
    with session() as assemble:
        checkpoint = assemble(overrides).init.checkpoint
    assert checkpoint == "outputs/sweeps/table14/seed=3,size=4m,variant=retro/baseline"
