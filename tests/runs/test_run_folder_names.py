"""Run folders are named after what is trained: the same command finds its folder again, another one never does."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from retro_lab.config import session
from retro_lab.runs.naming import FOLDER_NAME, LONGEST, slug

QUICKSTART = "+experiment=quickstart"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([QUICKSTART], "quickstart"),
        ([QUICKSTART, "retrieval.k=4"], "quickstart,retrieval.k=4"),
        (["size=172m", QUICKSTART, "database.fraction=0.1"], "quickstart,database.fraction=0.1,size=172m"),
        (["+sweep=neighbors", "seed=3"], "neighbors,seed=3"),
        ([QUICKSTART, "trainer.precision=bf16-mixed"], "quickstart,trainer.precision=bf16-mixed"),
        ([], "default"),
    ],
)
def test_names_can_be_read(overrides: list[str], name: str) -> None:
    assert slug(overrides) == name


@pytest.mark.parametrize(
    "override",
    [
        "task=evaluate",
        "task.count=5",
        "evaluation.k=[0,8]",
        "paths.outputs=/scratch",
        "logger=none",
        "logger.wandb.offline=false",
        "~callbacks.progress",
        "cluster.partition=gpu",
        "build.dispatcher=ray",
        "name=x",
        "data.workers=4",
        "trainer.devices=2",
        "trainer.strategy=fsdp",
        "trainer.num_nodes=4",
        "trainer.accelerator=cpu",
        "+trainer.max_time=60",
        "compute.compile=true",
        "corpora.mine.path=x",
    ],
)
def test_what_does_not_change_the_training_does_not_change_the_folder(override: str) -> None:
    assert slug([QUICKSTART, override]) == slug([QUICKSTART])


@pytest.mark.parametrize(
    "override", ["seed=1", "trainer.precision=64-true", "debug=fast", "data.batch_size=8", "name_like.x=1"]
)
def test_what_changes_the_training_changes_the_folder(override: str) -> None:
    assert slug([QUICKSTART, override]) != slug([QUICKSTART])


def test_order_does_not_matter_and_the_last_value_wins() -> None:
    assert slug(["seed=1", "size=172m"]) == slug(["size=172m", "seed=1"])
    assert slug(["seed=1", "seed=2"]) == slug(["seed=2"]) != slug(["seed=2", "seed=1"])


def test_odd_characters_and_long_names_end_in_a_hash() -> None:
    assert re.fullmatch(r"corpus.path=-data-a-json-[0-9a-f]{8}", slug(["corpus.path=/data/a*json"]))
    long = [f"corpus.path={'x' * 300}"]
    assert len(slug(long)) == LONGEST
    assert slug([QUICKSTART, *long]) != slug(long)
    assert slug(["+experiment=sweeps"]) != "sweeps"


keys = st.sampled_from(["corpus.path", "seed", "size", "retrieval.k"])
override_sets = st.dictionaries(keys, st.text(max_size=120), max_size=4)


@given(override_sets, override_sets)
def test_different_overrides_never_share_a_folder(first: dict[str, str], second: dict[str, str]) -> None:
    names = [slug(f"{key}={value}" for key, value in overrides.items()) for overrides in (first, second)]
    assert (names[0] == names[1]) == (first == second)
    assert all(re.fullmatch(FOLDER_NAME, name) and len(name) <= LONGEST for name in names)


def composed(*overrides: str) -> OmegaConf:
    with session.session() as assemble:
        return assemble(list(overrides))


@pytest.mark.parametrize("task", ["train", "compare", "evaluate", "report", "inspect"])
def test_tasks_of_a_run_share_its_folder(task: str) -> None:
    assert composed(QUICKSTART, f"task={task}", "seed=3").hydra.run.dir == "outputs/quickstart,seed=3"


@pytest.mark.parametrize("task", ["build", "plan", "verify"])
def test_tasks_that_write_no_run_make_no_folder(task: str) -> None:
    config = composed(QUICKSTART, f"task={task}")
    assert config.hydra.run.dir == "."


def test_a_name_takes_the_place_of_the_overrides() -> None:
    config = composed(QUICKSTART, "seed=3", "name=mine", "paths.outputs=/runs")
    assert config.hydra.run.dir == "/runs/mine"
    assert config.logger.wandb.name == "mine"


def test_an_override_that_is_an_interpolation_is_named_as_written() -> None:
    folder = composed("schedule.tokens=${tokens_of_steps:4}").hydra.run.dir
    assert folder.startswith("outputs/schedule.tokens=-tokens_of_steps-4-")


def test_outputs_go_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRO_LAB_OUTPUTS", "/scratch/runs")
    assert composed(QUICKSTART).hydra.run.dir == "/scratch/runs/quickstart"
