"""Results survive being written, and what is damaged says so."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retro_lab.errors import ArtifactError
from retro_lab.runs.records import ModelRecord, load_result, load_run, scores_name, write_result

st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=st.from_type(ModelRecord))
def test_a_written_record_reads_back_equal(tmp_path: Path, record: ModelRecord) -> None:
    path = tmp_path / "retro" / "result.json"
    write_result(path, record)
    assert load_result(path) == record
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_a_record_with_a_curve_and_a_database_reads_back_equal(tmp_path: Path, retro: ModelRecord) -> None:
    write_result(tmp_path / "result.json", retro)
    assert load_result(tmp_path / "result.json") == retro


def test_a_record_of_an_earlier_release_has_whole_databases(retro: ModelRecord) -> None:
    """It names the same scores, whose files keep their names, so nothing is measured again."""
    content = json.loads(retro.to_json())
    known = ("database", "source", "neighbors")
    for entry in content["evaluations"]:
        if entry["retrieved"]:
            entry["retrieved"] = {name: entry["retrieved"][name] for name in known}
    old = ModelRecord.from_json(json.dumps(content))
    [entry] = [entry for entry in old.evaluations if entry.retrieved]
    found = entry.retrieved
    assert found is not None
    assert found.is_whole
    assert found.tokens is None
    told = replace(found, chunks=5, tokens=40)
    assert entry.measured == replace(entry, retrieved=told).measured
    assert scores_name(entry.text, entry.k, found) == scores_name(entry.text, entry.k, told)


def test_whole_numbers_written_as_floats_are_counts(baseline: ModelRecord) -> None:
    text = replace(baseline, tokens=1e6).to_json()  # type: ignore[arg-type]
    tokens = ModelRecord.from_json(text).tokens
    assert tokens == 1_000_000
    assert isinstance(tokens, int)


def test_fields_of_a_later_release_are_ignored(baseline: ModelRecord) -> None:
    content = json.loads(baseline.to_json()) | {"energy": 12}
    assert ModelRecord.from_json(json.dumps(content)) == baseline


def test_an_interrupted_write_leaves_the_earlier_result(
    tmp_path: Path, baseline: ModelRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_result(path, baseline)

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_result(path, replace(baseline, seed=1))
    assert load_result(path) == baseline
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, baseline: ModelRecord) -> None:
    (tmp_path / "retro").write_text("a file where the folder should be")
    with pytest.raises(ArtifactError, match=r"retro/result\.json"):
        write_result(tmp_path / "retro" / "result.json", baseline)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "not a whole result"),
        (lambda text: "", "not a whole result"),
        (lambda text: "[]", "the record: Input should be"),
        (lambda text: text.replace('"steps": 1000', '"steps": "many"'), "steps: Input should be a valid integer"),
        (lambda text: text.replace('"steps": 1000', '"steps": 0.5'), "steps: Input should be a valid integer"),
        (lambda text: text.replace('"steps"', '"stops"'), "steps: Field required"),
        # As in records from before there were these.
        (lambda text: text.replace('"flops"', '"flop"'), "flops: Field required"),
        (lambda text: text.replace('"scores"', '"score"'), r"evaluations\.0\.scores: Field required"),
        (lambda text: text.replace('"perplexity": 64.0', '"perplexity": null'), r"evaluations\.0\.perplexity"),
        (lambda text: text.replace('"python_source"', "7"), "corpus.source: Input should be a valid string"),
    ],
)
def test_a_damaged_result_is_named_with_the_cure(
    tmp_path: Path, baseline: ModelRecord, damage: object, reason: str
) -> None:
    path = tmp_path / "baseline" / "result.json"
    path.parent.mkdir()
    assert callable(damage)
    path.write_text(damage(baseline.to_json()))
    with pytest.raises(ArtifactError, match=reason) as caught:
        load_run(tmp_path)
    assert str(path) in str(caught.value)
    assert "delete it and run" in str(caught.value)


def test_bytes_that_are_no_text_are_a_damaged_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="not a whole result"):
        load_result(tmp_path / "result.json")


def test_a_run_folder_tells_finished_from_unfinished_models(run_folder: Path, baseline: ModelRecord) -> None:
    (run_folder / "retro" / "result.json").unlink()
    run = load_run(run_folder)
    assert (run.name, run.models, run.unfinished) == ("quickstart", (baseline,), ("retro",))


def test_a_failure_that_cannot_be_read_is_still_a_failure(run_folder: Path) -> None:
    (run_folder / "failed.json").write_text('{"err')
    assert "failed.json" in (load_run(run_folder).error or "")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_result_holds_a_number_that_json_has_not(tmp_path: Path, retro: ModelRecord, value: float) -> None:
    broken = replace(retro, evaluations=(replace(retro.evaluations[0], bits_per_byte=value),))
    with pytest.raises(ValueError, match="JSON"):
        write_result(tmp_path / "result.json", broken)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "result.json").write_text(retro.to_json().replace(str(retro.evaluations[0].bits_per_byte), "NaN"))
    with pytest.raises(ArtifactError, match=r"result\.json"):
        load_result(tmp_path / "result.json")
