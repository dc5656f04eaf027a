"""Which cells a sweep has, what varies between them, and how far each is."""

from pathlib import Path

import pytest
from folders import AddCell, write_grid, write_models

from retro_lab.errors import ArtifactError
from retro_lab.runs.records import ModelRecord
from retro_lab.runs.sweeps import load_sweep, number, write_plan


def test_cells_that_never_started_are_missing(sweep_folder: Path) -> None:
    sweep = load_sweep(sweep_folder)
    assert sweep.axes == ("retrieval.k",)
    assert [cell.overrides["retrieval.k"] for cell in sweep.with_status("missing")] == ["0", "2", "4", "10"]
    assert not sweep.has_outcome


def test_a_cell_with_an_unfinished_model_is_missing(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord
) -> None:
    folder = add_cell(["retrieval.k=2", "+sweep=neighbors", "seed=3"], baseline)
    (folder / "retro").mkdir()
    assert not load_sweep(sweep_folder).with_status("done")
    assert load_sweep(sweep_folder).has_outcome


def test_cells_of_an_older_sweep_in_the_same_folder_are_shown(
    sweep_folder: Path, add_cell: AddCell, retro: ModelRecord
) -> None:
    add_cell(["retrieval.k=1", "+sweep=neighbors", "seed=3"], retro)
    sweep = load_sweep(sweep_folder)
    assert [cell.overrides["retrieval.k"] for cell in sweep.cells] == ["0", "1", "2", "4", "10"]
    assert sweep.cells[1].status == "done"


def test_cells_of_an_earlier_plan_stay_if_they_were_begun(
    sweep_folder: Path, add_cell: AddCell, retro: ModelRecord
) -> None:
    add_cell(["retrieval.k=2"], retro)
    write_grid(sweep_folder, {"retrieval.k": ["9"]})
    assert [cell.name for cell in load_sweep(sweep_folder).cells] == ["retrieval.k=2", "retrieval.k=9"]


def test_names_are_in_the_order_they_were_written_in(sweep_folder: Path) -> None:
    write_grid(sweep_folder, {"experiment": ["zebra", "ant"], "database.fraction": ["1", "0.25", "5e-2"]})
    sweep = load_sweep(sweep_folder)
    assert sweep.axes == ("experiment", "database.fraction")
    assert [tuple(cell.overrides.values()) for cell in sweep.cells] == [
        (name, fraction) for name in ("zebra", "ant") for fraction in ("5e-2", "0.25", "1")
    ]


def test_one_damaged_cell_does_not_hide_the_others(
    sweep_folder: Path, add_cell: AddCell, baseline: ModelRecord, retro: ModelRecord
) -> None:
    add_cell(["retrieval.k=0", "+sweep=neighbors", "seed=3"], baseline)
    damaged = add_cell(["retrieval.k=2", "+sweep=neighbors", "seed=3"], retro)
    (damaged / "retro" / "result.json").write_text("{")
    sweep = load_sweep(sweep_folder)
    assert [cell.status for cell in sweep.cells] == ["done", "failed", "missing", "missing"]
    assert "result.json" in (sweep.cells[1].error or "")


@pytest.mark.parametrize("content", ["[a", "7", "\x00", "overrides: 7"])
def test_a_cell_outside_the_plan_whose_overrides_cannot_be_read_is_a_failure(
    sweep_folder: Path, add_cell: AddCell, retro: ModelRecord, content: str
) -> None:
    folder = add_cell(["retrieval.k=7"], retro)
    (folder / "config.yaml").write_text(content)
    (failed,) = load_sweep(sweep_folder).with_status("failed")
    assert "config.yaml" in (failed.error or "")


@pytest.mark.parametrize("content", ["{", "7", "{}", '{"cells": [{"name": 1}]}', '{"cells": 1}'])
def test_a_plan_that_cannot_be_read_is_named_with_the_cure(sweep_folder: Path, content: str) -> None:
    (sweep_folder / "sweep.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"sweep\.json is not the plan of a sweep .*; delete it"):
        load_sweep(sweep_folder)


def test_cells_that_a_sweeper_made_up_are_known_by_their_own_notes(
    tmp_path: Path, sweep_folder: Path, add_cell: AddCell, retro: ModelRecord
) -> None:
    write_plan(sweep_folder, {})
    add_cell(["optimizer.lr=0.1", "+sweep=mine"], retro)
    add_cell(["optimizer.lr=0.2", "+sweep=mine"], error="no memory")
    sweep = load_sweep(sweep_folder)
    assert sweep.axes == ("optimizer.lr",)
    assert [cell.status for cell in sweep.cells] == ["done", "failed"]


def test_cells_below_a_folder_are_found(sweep_folder: Path, retro: ModelRecord) -> None:
    write_models(sweep_folder / "+experiment" / "one", retro)
    assert [cell.name for cell in load_sweep(sweep_folder).with_status("failed")] == ["+experiment/one"]


def test_a_folder_without_a_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing here"):
        load_sweep(tmp_path / "nothing here")


@pytest.mark.parametrize(
    ("value", "expected"), [("4e9", 4e9), ("-1", -1.0), ("null", None), ("", None), ("nan", None), (None, None)]
)
def test_numbers_are_told_from_names(value: str | None, expected: float | None) -> None:
    assert number(value) == expected


def test_what_a_cell_was_scored_with_later_tells_it_from_no_other(sweep_folder: Path) -> None:
    cells: dict[str, dict[str, str]] = {
        "size=a": {"sweep": "table14", "size": "a", "evaluation.k": "[0,10]", "task.split": "test", "logger": "none"},
        "size=b": {"sweep": "figure6", "size": "b"},
    }
    write_plan(sweep_folder, cells)
    assert load_sweep(sweep_folder).axes == ("size",)
    write_plan(sweep_folder, {f"evaluation.stride={n}": {"evaluation.stride": n} for n in ("8", "16")})
    assert load_sweep(sweep_folder).axes == ("evaluation.stride",)
