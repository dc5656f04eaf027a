"""What cannot work is refused before anything is built, in one sentence that names the setting and its value."""

from pathlib import Path

import pytest

from retro_lab.config.catalog import all_settings
from retro_lab.config.compose import compose
from retro_lab.errors import ConfigurationError
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks import compare, memory, train
from retro_lab.tasks.assemble import without_retrieval
from retro_lab.tasks.checks import check_start, check_training
from retro_lab.training.devices import device_count

QUICKSTART = "+experiment=quickstart"


def numbers() -> list[str]:
    """Settings that take a number, or a list of them, and that schemas bound."""
    bounded = ("data", "optimizer", "schedule", "evaluation", "retrieval", "database", "embedder", "index", "task")
    kinds = ("int", "float", "int | None", "float | None", "list[int]", "list[float]")
    settings = all_settings().values()
    free = ("task.chunk",)  # bounded by what there is to show
    return [
        setting.key
        for setting in settings
        if setting.type in kinds and setting.key.partition(".")[0] in bounded and setting.key not in free
    ]


@pytest.mark.parametrize("key", numbers())
@pytest.mark.parametrize("value", ["nan", "-1"])
def test_no_setting_takes_what_is_no_number_of_its_kind(key: str, value: str) -> None:
    kind = all_settings()[key].type
    tasks = {
        "inspect": ("count",),
        "zero_shot": ("k", "limit", "few_shot"),
        "answer": ("passages", "steps", "dropout"),
        "export": ("shard_bytes",),
        "generate": ("temperature", "top_k", "top_p", "seed", "k", "retrieve_every", "batch_size"),
        "serve": ("port", "max_texts", "max_characters", "max_tokens", "max_body_bytes", "max_waiting"),
    }
    task = {f"task.{name}": task for task, names in tasks.items() for name in names}
    with pytest.raises(ConfigurationError, match=rf"^{key}\b[^\n]*{value.removeprefix('-')}[^\n]*$"):
        compose(
            [
                QUICKSTART,
                f"task={task.get(key, 'plan')}",
                *(f"task.{name}=x" for name in ("start", "train", "validation") if task.get(key) == "answer"),
                f"{key}={[float(value)] if kind.startswith('list') else value}",
            ]
        )


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
        ("evaluation.k=[0,-2]", r"evaluation\.k must be 0 or more, not -2"),
        ("retrieval.method=bm24", r"retrieval\.method=bm24 is not one of dense, bm25, hybrid"),
        ("data.sequence_length=100", r"data\.sequence_length=100 is not a multiple of model\.chunk_length=16"),
        ("evaluation.stride=24", r"evaluation\.stride=24 must be a multiple of model\.chunk_length=16"),
        ("evaluation.stride=256", r"evaluation\.stride=256 .* at most data\.sequence_length=128"),
        ("data.batch_size=5 trainer.devices=2", r"data\.batch_size=5 cannot be divided over 2 devices"),
        (
            "+trainer.accumulate_grad_batches=3",
            r"trainer\.accumulate_grad_batches=3 cannot .*: data\.micro_batch_size sets",
        ),
        ("trainer.strategy=fsdp", r"trainer\.strategy=fsdp is not supported: trainer=fsdp shards the model"),
        (
            "trainer=fsdp trainer.accelerator=cpu trainer.devices=3 data.batch_size=8",
            r"data\.batch_size=8 cannot be divided",
        ),
        ("trainer=fsdp trainer.accelerator=cpu trainer.precision=64-true", r"64-true does not work with trainer=fsdp"),
        ("trainer.devices=two", r"trainer\.devices=two is not a number of devices"),
        ("trainer.devices=[]", r"trainer\.devices=\[\] leaves nothing to train on"),
        ("trainer.precision=16", r"trainer\.precision=16 needs a GPU"),
        (
            "size.cca_layers=[]",
            r"retrieval\.k=1 neighbors are not used by any layer, because size\.cca_layers is empty",
        ),
        ("model.chunk_length=0", r"model\.chunk_length must be a positive whole number, not 0"),
    ],
)
def test_training_is_refused_at_once(overrides: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        check_training(compose([QUICKSTART, *overrides.split()]))
    assert "\n" not in str(caught.value)


def test_the_quickstart_and_the_defaults_pass() -> None:
    check_training(compose([QUICKSTART]))
    check_training(without_retrieval(compose([QUICKSTART])))
    check_training(compose([QUICKSTART, "retrieval.k=0"]))


@pytest.mark.parametrize(
    ("devices", "count"),
    [("3", 3), ("[0,2]", 2), ("'0,2'", 2), ("'1,'", 1), ("'4'", 4), ("auto", None), ("-1", None), ("'-1'", None)],
)
def test_devices_are_counted_as_lightning_counts_them(devices: str, count: int | None) -> None:
    trainer = compose([QUICKSTART, f"trainer.devices={devices}", "trainer.num_nodes=2"]).trainer
    assert device_count(trainer) == (None if count is None else 2 * count)


def test_retrofit_without_a_baseline_is_refused_where_none_is_trained(tmp_path: Path) -> None:
    retrofit = compose([QUICKSTART, "init=retrofit"])
    with pytest.raises(ConfigurationError, match=r"init=retrofit starts from .* none at .*baseline; set init\.check"):
        check_start(retrofit, RunFolder(tmp_path))
    trained = tmp_path / "baseline" / "model.json"
    trained.parent.mkdir()
    trained.touch()
    check_start(retrofit, RunFolder(tmp_path))
    check_start(compose([QUICKSTART, "init=retrofit", f"init.checkpoint={trained.parent}"]), RunFolder(tmp_path / "b"))
    check_start(compose([QUICKSTART]), RunFolder(tmp_path / "other"))


def test_comparing_needs_no_baseline_but_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "train_models", lambda configs, folder, inputs: pytest.fail("it trains"))
    retrofit, folder = [QUICKSTART, "task=compare", "init=retrofit"], RunFolder(tmp_path)
    with pytest.raises(ConfigurationError, match=r"there is none at gone\.ckpt; set init\.checkpoint .*, or leave it"):
        compare.run(compose([*retrofit, "init.checkpoint=gone.ckpt"]), folder)
    for overrides in ([], [f"init.checkpoint={tmp_path / 'baseline'}"]):
        with pytest.raises(pytest.fail.Exception, match="it trains"):
            compare.run(compose([*retrofit, *overrides]), folder)


def test_a_step_that_the_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory", lambda accelerator: 16e9)
    large = ["data.batch_size=1000000"]
    with pytest.raises(
        ConfigurationError,
        match=r"data\.batch_size=1000000 makes 1,000,000 sequences .* at least .*TB, more than the 16",
    ):
        check_training(compose([QUICKSTART, *large]))
    check_training(compose([QUICKSTART, *large, "data.micro_batch_size=20"]))
    with pytest.raises(ConfigurationError, match=r"size=7_5b takes at least .* use a smaller size"):
        check_training(compose(["size=7_5b", "trainer=cpu", "data.batch_size=1"]))


def test_this_machines_memory_is_known() -> None:
    assert 2**27 < (memory.memory("cpu") or 0) < 2**50


def test_processes_that_would_each_train_a_model_of_their_own_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():  # as torchrun sets them
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=r"2 processes were started for 1 device: .*trainer\.devices=2"):
        check_training(compose(["task=train"]))
    check_training(compose(["task=train", "trainer.devices=2", "trainer.strategy=ddp"]))
