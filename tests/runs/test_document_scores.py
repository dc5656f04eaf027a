"""Each document's share in a score survives being written, and what is damaged says so."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from folders import DATABASE_FOUND, TEST, document_scores, evaluation

from retro_lab.errors import ArtifactError
from retro_lab.runs.document_scores import DocumentScores, load_document_scores, write_document_scores
from retro_lab.runs.records import ModelRecord, load_run, scores_name

ENTRY = evaluation(2, 1.9)


def test_written_scores_read_back_equal(tmp_path: Path) -> None:
    written = document_scores(ENTRY)
    write_document_scores(tmp_path / ENTRY.scores, written)
    read = load_document_scores(tmp_path / ENTRY.scores)
    for name in ("nats", "tokens", "bytes"):
        assert getattr(read, name).dtype == getattr(written, name).dtype
        assert np.array_equal(getattr(read, name), getattr(written, name))
    assert [path.suffix for path in (tmp_path / "scores").iterdir()] == [".parquet"]


def test_what_is_measured_differently_has_files_of_its_own() -> None:
    other_text, other_database = replace(TEST, stride=32), replace(DATABASE_FOUND, neighbors="345")
    measured = [(TEST, 0, None), (TEST, 2, DATABASE_FOUND), (TEST, 4, DATABASE_FOUND), (TEST, 2, other_database)]
    measured += [(other_text, 0, None), (other_text, 2, DATABASE_FOUND)]
    assert len({scores_name(*key) for key in measured}) == len(measured)


def test_damaged_scores_are_named_with_the_cure(run_folder: Path, retro: ModelRecord) -> None:
    entry = retro.evaluations[0]
    path = run_folder / "retro" / entry.scores
    cure = rf"^{re.escape(str(path))} [^\n]*; delete it and run the command that made it again\.$"
    whole, content = load_document_scores(path), path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"PAR1" + bytes(40)):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=cure):
            load_run(run_folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=cure):
        load_run(run_folder)
    less = DocumentScores(nats=whole.nats[1:], tokens=whole.tokens[1:], bytes=whole.bytes[1:])
    write_document_scores(path, less)
    with pytest.raises(ArtifactError, match=f"add up.*{cure[-40:]}"):
        load_run(run_folder)
