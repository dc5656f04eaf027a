"""What the command line fills in before Hydra sees it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from retro_lab.config.arguments import complete, in_order
from retro_lab.errors import ConfigurationError

Write = Callable[[str, str], Path]


def settings(*arguments: str) -> dict[str, str]:
    """Complete arguments, by key; flags have no value."""
    pairs = (argument.partition("=") for argument in complete(arguments))
    return {key: value for key, _, value in pairs}


def test_no_arguments_are_the_quickstart() -> None:
    assert complete([]) == ["+experiment=quickstart"]


def test_a_sweep_is_a_multirun_in_a_folder_of_its_own() -> None:
    completed = settings("+sweep=neighbors", "seed=3")
    assert completed["hydra.mode"] == "MULTIRUN"
    assert completed["hydra.sweep.dir"] == "'${paths.outputs}/sweeps/neighbors,seed=3'"


@pytest.mark.parametrize("asked", ["-m", "--multirun", "hydra.mode=MULTIRUN"])
def test_multirun_may_be_asked_for(asked: str) -> None:
    completed = settings("schedule.tokens=1e9", asked, "seed=1,2")
    assert completed["hydra.sweep.dir"] == "'${paths.outputs}/sweeps/quickstart,schedule.tokens=1e9,seed'"
    assert completed.get("hydra.mode", "MULTIRUN") == "MULTIRUN"


@pytest.mark.parametrize("arguments", [("hydra.mode=RUN",), ("--run",)])
def test_a_sweep_file_can_be_run_once(arguments: tuple[str, ...]) -> None:
    completed = settings("+sweep=neighbors", *arguments)
    assert completed.get("hydra.mode") in (None, "RUN")
    assert "hydra.sweep.dir" not in completed


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (
            ["-m", "+experiment=quickstart", "retrieval.k=1,2", "data.batch_size=8"],
            "quickstart,data.batch_size=8,retrieval.k",
        ),
        (["-m", "+experiment=quickstart,quickstart"], "experiment"),
        (["+sweep=neighbors", "retrieval.k=8,9"], "neighbors"),
        (["+sweep=neighbors", "retrieval.k=8", "seed=1,2"], "neighbors,retrieval.k=8,seed"),
    ],
)
def test_a_sweep_is_named_after_what_it_has_in_common_and_what_varies(arguments: list[str], name: str) -> None:
    assert settings(*arguments)["hydra.sweep.dir"] == f"'${{paths.outputs}}/sweeps/{name}'"


def test_axes_of_the_command_line_name_the_cells() -> None:
    assert (
        settings("-m", "+experiment=quickstart", "retrieval.k=1,2", "seed=3")["hydra.sweep.subdir"]
        == "'${cell_name:retrieval.k}'"
    )


def test_given_folders_and_names_are_kept(write: Write) -> None:
    assert settings("-m", "task=build", "seed=1,2", "name=mine")["hydra.sweep.dir"] == "'${paths.outputs}/sweeps/mine'"
    assert settings("-m", "task=build", "seed=1,2", "hydra.sweep.dir=elsewhere")["hydra.sweep.dir"] == "elsewhere"
    write("sweeps/named.yaml", "name: by_file\nhydra:\n  sweeper:\n    params:\n      seed: 1,2\n")
    assert settings("+sweep=named")["hydra.sweep.dir"] == "'${paths.outputs}/sweeps/by_file'"


def test_a_report_is_made_once_for_a_sweep() -> None:
    completed = settings("+sweep=neighbors", "task=report", "seed=3", "-m")
    assert completed["hydra.run.dir"] == "'${paths.outputs}/sweeps/neighbors,seed=3'"
    assert not {"hydra.mode", "hydra.sweep.dir", "-m"} & set(completed)
    by_axes = settings("-m", "+experiment=quickstart", "retrieval.k=1,2", "task=report")
    assert by_axes["hydra.run.dir"] == "'${paths.outputs}/sweeps/quickstart,retrieval.k'"
    assert "retrieval.k" not in by_axes


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["-m", "size=tiny,huge"], "There is no size=huge"),
        (["-m", "retrieval.k=1,two"], "retrieval.k takes int"),
        (["-m", "seed=1,2", "corpus=python_source,local"], "corpus.path has no value"),
        (["+sweep=neighbors", "retreival.k=1,2"], "There is no setting retreival.k"),
        (["+sweep=neighbours"], "did you mean neighbors?"),
    ],
)
def test_a_mistake_in_any_cell_is_found_before_the_first_is_run(arguments: list[str], wrong: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        complete(arguments)
    assert wrong in str(caught.value)


def test_values_may_be_missing_from_what_all_cells_share() -> None:
    assert complete(["-m", "task=build", "corpus=local", "corpus.path=a.txt,b.txt"])


def test_a_glob_stands_for_the_experiments_there_are(write: Write) -> None:
    write("experiments/one.yaml", "retrieval: {kk: 1}\n")
    with pytest.raises(ConfigurationError, match="experiment/one"):
        complete(["-m", "+experiment=glob(*)"])


def test_added_groups_stand_in_the_order_in_which_they_win() -> None:
    given = ["seed=1", "debug=fast", "sweep=neighbors", "+experiment=quickstart"]
    assert in_order(given) == ["+experiment=quickstart", "+sweep=neighbors", "+debug=fast", "seed=1"]


def test_printing_a_configuration_needs_no_values_but_valid_ones() -> None:
    assert complete(["corpus=local", "--cfg", "job"]) == ["+experiment=quickstart", "corpus=local", "--cfg", "job"]
    with pytest.raises(ConfigurationError, match="There is no size=huge"):
        complete(["--cfg", "job", "size=huge"])


@pytest.mark.parametrize("arguments", [["-sc", "query=bash"], ["--experimental-rerun", "config.pickle"]])
def test_what_is_not_for_people_passes_unchanged(arguments: list[str]) -> None:
    assert complete(arguments) == arguments
