"""What cannot work is refused before anything is built, in one sentence that names the setting and its value."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from retro_lab.config.compose import compose
from retro_lab.errors import ConfigurationError
from retro_lab.tasks import compare, memory
from retro_lab.tasks.checks import check_start, check_training, device_count
from retro_lab.tasks.ranges import RANGES, check_values

QUICKSTART = "+experiment=quickstart"


@pytest.mark.parametrize("key", RANGES)
@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf"), float("-inf")])
def test_no_setting_takes_what_is_no_number_of_its_kind(key: str, value: float) -> None:
    config = OmegaConf.create(OmegaConf.to_container(compose([QUICKSTART, "task=plan"])))  # whole numbers take any
    assert isinstance(config, DictConfig)
    OmegaConf.update(config, key, [value] if isinstance(OmegaConf.select(config, key), ListConfig) else value)
    with pytest.raises(ConfigurationError, match=rf"^{key} [^\n]*, not {value}\.$"):
        check_values(config)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("optimizer.lr=nan", r"optimizer\.lr must be a finite number, not nan"),
        ("optimizer.lr=.nan", r"optimizer\.lr must be a finite number, not nan"),
        ("schedule.tokens=-.inf", r"schedule\.tokens must be a finite number, not -inf"),
        ("optimizer.betas=[0.9,.NaN]", r"optimizer\.betas must be a finite number, not nan"),
        ("optimizer.betas=[0.9,1.0]", r"optimizer\.betas is a rate of decay, at least 0 and below 1, not 1\.0"),
        ("schedule.tokens=0", r"schedule\.tokens must be positive, not 0\.0"),
        ("schedule.final_ratio=2", r"schedule\.final_ratio is a share, from 0 to 1, not 2\.0"),
        ("database.fraction=1.5", r"database\.fraction is a share, above 0 and up to 1, not 1\.5"),
        ("database.fractions=[0.1,0]", r"database\.fractions is a share, above 0 and up to 1, not 0"),
        ("retrieval.k=-1", r"retrieval\.k must be 0 or more, not -1"),
        ("evaluation.neighbors=[0,-2]", r"evaluation\.neighbors must be 0 or more, not -2"),
        ("retrieval.method=bm24", r"retrieval\.method=bm24 is not one of dense, bm25, hybrid"),
        ("data.sequence_length=100", r"data\.sequence_length=100 is not a multiple of model\.chunk_length=16"),
        ("evaluation.stride=24", r"evaluation\.stride=24 must be a multiple of model\.chunk_length=16"),
        ("evaluation.stride=256", r"evaluation\.stride=256 .* at most data\.sequence_length=128"),
        ("data.batch_size=5 trainer.devices=2", r"data\.batch_size=5 cannot be divided over 2 devices"),
        ("data.batch_size=4 trainer.accumulate_grad_batches=3", r"1 devices x 3 accumulated .* a multiple of 3"),
        ("trainer.devices=two", r"trainer\.devices=two is not a number of devices"),
        ("trainer.devices=[]", r"trainer\.devices=\[\] leaves nothing to train on"),
        ("trainer.precision=16", r"trainer\.precision=16 needs a GPU"),
        ("size.cca_layers=[]", r"retrieval\.k=2 neighbors reach no layer, because size\.cca_layers is empty"),
        ("model.chunk_length=0", r"model\.chunk_length must be a positive whole number, not 0"),
    ],
)
def test_training_is_refused_at_once(overrides: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        check_training(compose([QUICKSTART, *overrides.split()]), 2)
    assert "\n" not in str(caught.value)


def test_the_quickstart_and_the_defaults_pass() -> None:
    check_training(compose([QUICKSTART]), 2)
    check_training(compose([QUICKSTART]), 0)
    check_values(compose([]))


@pytest.mark.parametrize(
    ("devices", "count"),
    [("3", 3), ("[0,2]", 2), ("'0,2'", 2), ("'1,'", 1), ("'4'", 4), ("auto", None), ("-1", None), ("'-1'", None)],
)
def test_devices_are_counted_as_lightning_counts_them(devices: str, count: int | None) -> None:
    trainer = compose([QUICKSTART, f"trainer.devices={devices}", "trainer.num_nodes=2"]).trainer
    assert device_count(trainer) == (None if count is None else 2 * count)


def test_retrofit_without_a_baseline_is_refused_where_none_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"init=retrofit starts from .* no .*last\.ckpt; set init\.checkpoint"):
        check_start(compose([QUICKSTART, "init=retrofit"]), tmp_path)
    checkpoint = tmp_path / "baseline" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    check_start(compose([QUICKSTART, "init=retrofit"]), tmp_path)
    check_start(compose([QUICKSTART]), tmp_path / "other")


def test_comparing_needs_no_baseline_but_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "run_folder", lambda: tmp_path)
    monkeypatch.setattr(compare, "build_corpus", lambda config: pytest.fail("it builds"))
    retrofit = [QUICKSTART, "task=compare", "init=retrofit"]
    with pytest.raises(ConfigurationError, match=r"there is no gone\.ckpt; set init\.checkpoint .*, or leave it out"):
        compare.run(compose([*retrofit, "init.checkpoint=gone.ckpt"]))
    own = tmp_path / "baseline" / "checkpoints" / "last.ckpt"
    for overrides in ([], [f"init.checkpoint={own}"]):
        with pytest.raises(pytest.fail.Exception, match="it builds"):
            compare.run(compose([*retrofit, *overrides]))


def test_a_step_that_the_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory", lambda accelerator: 16e9)
    large = ["data.batch_size=100000"]
    with pytest.raises(
        ConfigurationError, match=r"data\.batch_size=100000 makes 100,000 sequences .* at least .*TB, more than the 16"
    ):
        check_training(compose([QUICKSTART, *large]), 2)
    check_training(compose([QUICKSTART, *large, "trainer.accumulate_grad_batches=5000"]), 2)
    with pytest.raises(ConfigurationError, match=r"size=7_5b takes at least .* use a smaller size"):
        check_training(compose(["size=7_5b", "trainer=cpu", "data.batch_size=1"]), 2)


def test_this_machines_memory_is_known() -> None:
    assert 2**27 < (memory.memory("cpu") or 0) < 2**50
