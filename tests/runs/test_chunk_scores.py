"""Each chunk's share in a score survives being written, and what is damaged says so."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import DATABASE_FOUND, TEST, chunk_scores, evaluation

from retro_lab.errors import ArtifactError
from retro_lab.runs.chunk_scores import load_chunk_scores, write_chunk_scores
from retro_lab.runs.records import ModelRecord, load_run, scores_name

ENTRY = evaluation(2, 1.9)


@pytest.mark.parametrize("k", [0, 2])
def test_written_scores_read_back_equal(tmp_path: Path, k: int) -> None:
    entry = evaluation(k, 1.9)
    written = chunk_scores(entry)
    write_chunk_scores(tmp_path / entry.scores, written)
    read = load_chunk_scores(tmp_path / entry.scores)
    assert (written.overlap is None) == (k == 0)
    for name in ("document", "nats", "tokens", "bytes", "overlap"):
        one, other = getattr(written, name), getattr(read, name)
        assert np.array_equal(one, other)
        assert one is other is None or one.dtype == other.dtype
    assert [path.suffix for path in (tmp_path / "scores").iterdir()] == [".parquet"]


def test_chosen_chunks_add_up_by_document_and_together() -> None:
    scores = chunk_scores(ENTRY)
    assert scores.overlap is not None
    chosen = scores.overlap <= 0.25
    chosen[scores.document == 3] = False
    part = scores.by_document(chosen)
    for name in ("nats", "tokens", "bytes"):
        rows = zip(scores.document.tolist(), getattr(scores, name).tolist(), chosen.tolist(), strict=True)
        expected = [0.0] * scores.documents
        for document, value, kept in rows:
            expected[document] += value * kept
        assert getattr(part, name).tolist() == pytest.approx(expected)
        assert getattr(part, name)[3] == 0
    assert scores.bits_per_byte(chosen) == pytest.approx(part.nats.sum() / math.log(2) / part.bytes.sum(), rel=1e-12)
    assert scores.bits_per_byte() == pytest.approx(ENTRY.bits_per_byte, rel=1e-12)
    assert scores.bits_per_byte(np.zeros(len(chosen), bool)) is None


def test_what_is_measured_differently_has_files_of_its_own() -> None:
    other_text, other_database = replace(TEST, stride=32), replace(DATABASE_FOUND, neighbors="345")
    measured = [(TEST, 0, None), (TEST, 2, DATABASE_FOUND), (TEST, 4, DATABASE_FOUND), (TEST, 2, other_database)]
    measured += [(other_text, 0, None), (other_text, 2, DATABASE_FOUND)]
    assert len({scores_name(*key) for key in measured}) == len(measured)


def test_damaged_scores_are_named_with_the_cure(run_folder: Path, retro: ModelRecord) -> None:
    entry = retro.evaluations[0]
    path = run_folder / "retro" / entry.scores
    cure = rf"^{re.escape(str(path))} [^\n]*; delete it and run the command that made it again\.$"
    whole, content = load_chunk_scores(path), path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"PAR1" + bytes(40)):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=cure):
            load_run(run_folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=cure):
        load_run(run_folder)
    for changed, reason in (
        (replace(whole, tokens=whole.tokens + (whole.document == 0)), "add up"),
        (replace(whole, nats=whole.nats * 1.001), "add up"),
        (replace(whole, document=whole.document + 1), "numbered from 0"),
        (replace(whole, overlap=None), "overlap if and only if"),
    ):
        write_chunk_scores(path, changed)
        with pytest.raises(ArtifactError, match=f"{reason}.*{cure[-40:]}"):
            load_run(run_folder)
    columns = {"document": [0], "nats": [1.0], "tokens": [1], "bytes": [1]}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ArtifactError, match=f"an earlier release.*{cure[-40:]}"):
        load_run(run_folder)
