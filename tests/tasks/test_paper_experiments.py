"""The experiments named after the paper have the settings of its tables, and what is planned from them agrees."""

import re
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest

from retro_lab.config.compose import compose
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks import plan
from retro_lab.tasks.config import RunConfig

# Table 10 with App. C.1, and Table 2: largest learning rate, batch, steps; parameters in millions without embeddings.
TABLE_10 = {
    "172m": (2e-4, 256, 800_000, 172, 132),
    "425m": (2e-4, 256, 800_000, 425, 368),
    "1_5b": (2e-4, 256, 800_000, 1_451, 1_309),
    "7_5b": (1e-4, 1024, 200_000, 7_532, 6_982),
}
# Table 12: largest and last learning rate, batch.
TABLE_12 = {"172m": (2e-4, 2e-5, 256), "425m": (2e-4, 2e-5, 256), "1_5b": (2e-4, 2e-5, 256), "7_5b": (1e-4, 1e-5, 256)}
TABLE_11 = {
    "size.layers": 18,
    "size.width": 1024,
    "size.ffw_width": 4096,
    "size.head_size": 64,
    "size.heads": 16,
    "data.sequence_length": 3072,
    "data.batch_size": 128,
    "tokenizer.vocabulary_size": 128_000,
    "optimizer.betas": [0.9, 0.95],
    "optimizer.eps": 1e-8,
    "model.dropout": 0.25,
    "schedule.warmup_start": 1e-7,
    "optimizer.lr": 2.5e-4,
    "schedule.warmup_steps": 4000,
}

Planned = Callable[..., str]


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Planned:
    """Plan with some overrides and return what is printed, each run of spaces as one."""

    def run(*overrides: str) -> str:
        plan.run(compose(["task=plan", *overrides]), RunFolder(Path()))
        return " ".join(capsys.readouterr().out.split())

    return run


def steps(config: RunConfig) -> float:
    return config.schedule.tokens / config.data.tokens_per_step


@pytest.mark.parametrize("size", TABLE_10)
def test_a_size_is_trained_with_its_own_settings(size: str, planned: Planned) -> None:
    lr, batch, count, retro, baseline = TABLE_10[size]
    config = compose([f"+experiment=paper_{size}"])
    assert config.task.name == "compare"
    assert (config.optimizer.lr, config.data.batch_size, steps(config)) == (lr, batch, count)
    assert (config.schedule.tokens, config.data.sequence_length) == (419_430_400_000, 2048)
    assert (config.schedule.warmup_steps, config.schedule.warmup_start, config.schedule.final_ratio) == (750, 1e-7, 0.1)
    assert (config.optimizer.weight_decay, config.retrieval.k) == (0.1, 2)
    assert config.tokenizer.vocabulary_size == 128_000
    assert {0, 1, 2, 10, 40, 100} <= set(config.evaluation.k)
    assert max(config.evaluation.k) <= config.retrieval.stored
    assert (config.evaluation.stride, config.corpus.weights["web"]) == (1024, 0.55)
    for k, millions in ((2, retro), (0, baseline)):
        printed = planned(f"+experiment=paper_{size}", f"retrieval.k={k}")
        assert f"{count:,} steps of {batch} x 2,048 tokens" in printed
        parameters = re.search(r"without embeddings, as in Table 2 ([\d,]+)", printed)
        assert parameters
        assert int(parameters[1].replace(",", "")) == pytest.approx(millions * 1e6, rel=0.005)


@pytest.mark.parametrize("size", TABLE_10)
def test_experiments_and_overrides_win_over_what_a_size_brings(size: str) -> None:
    small = compose([f"size={size}"])
    assert (small.optimizer.lr, small.data.batch_size) == (TABLE_10[size][0], 16)
    own = compose([f"+experiment=paper_{size}", "optimizer.lr=1", "data.batch_size=3"])
    assert (own.optimizer.lr, own.data.batch_size) == (1, 3)


@pytest.mark.parametrize("size", TABLE_12)
def test_retrofit_has_settings_of_its_own(size: str, planned: Planned) -> None:
    lr, last, batch = TABLE_12[size]
    config = compose(["+experiment=paper_retrofit", f"size={size}"])
    assert (config.init.name, config.task.name, config.data.batch_size) == ("retrofit", "train", batch)
    assert config.optimizer.lr == lr
    assert config.optimizer.lr * config.schedule.final_ratio == pytest.approx(last)
    assert config.schedule.tokens == 6e6 * 2048
    assert steps(config) == pytest.approx(0.0293 * 204.8e6 / 256, rel=0.001)  # "6 million sequences (3%)"
    baseline = compose([f"+experiment=paper_{size}"])
    for section in ("size", "model", "tokenizer", "corpus", "deduplication", "decontamination", "embedder"):
        assert getattr(config, section) == getattr(baseline, section), section
    assert config.init.checkpoint == f"outputs/paper_{size}/baseline"
    assert "12,288,000,000 tokens" in planned("+experiment=paper_retrofit", f"size={size}")


def test_wikitext103_is_table_11(planned: Planned) -> None:
    config = compose(["+experiment=paper_wikitext103"])
    assert {key: attrgetter(key)(config) for key in TABLE_11} == TABLE_11
    assert (config.task.name, config.init.name) == ("compare", "retrofit")
    assert steps(config) == 100_000
    assert config.optimizer.lr * config.schedule.final_ratio == pytest.approx(2e-5)
    assert 1 - config.evaluation.stride / config.data.sequence_length == 0.875
    assert (config.retrieval.k, 10 in config.evaluation.k) == (2, True)
    assert "100,000 steps of 128 x 3,072 tokens" in planned("+experiment=paper_wikitext103")
