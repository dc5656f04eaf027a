"""Scoring a finished run with other databases, parts of its database and filters: it adds scores and trains nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from in_process import furnish, run, small

from retro_lab.runs.records import load_run

RUN = Path("outputs/whole")
GIVEN = [
    "corpus=local", "corpus.path=my.jsonl", "name=whole", "retrieval.method=bm25", "retrieval.stored=20",
    "model.chunk_length=16", "logger=none",
]  # fmt: skip
OTHERS = [
    "+corpus@corpora.other=local", "corpora.other.path=other.jsonl", "evaluation.databases=[other]",
    "evaluation.fractions=[0.2,0.6]", "evaluation.keep=[0.05,0.6]", "evaluation.keep_seeds=[0,7]",
    "+evaluation.filters={new: {longest_overlap: 8, near_copies: 0.5}}",
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_bert):
    folder = furnish(tmp_path_factory.mktemp("retrievals"), tiny_bert)
    draw = np.random.default_rng(1)
    words = (folder / "my.jsonl").read_text(encoding="utf-8").split()[:200]
    rows = [{"text": " ".join(draw.choice(words, 40))} for _ in range(30)]
    (folder / "other.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def command(*arguments):
    return ["+experiment=quickstart", *GIVEN, *small([*GIVEN, *arguments]), *arguments]


def test_evaluation_alone_scores_parts_of_the_database_others_and_filters(workplace, monkeypatch, capfd):
    monkeypatch.chdir(workplace)
    assert run(command("task=compare", "task.longer_baseline=false"), monkeypatch) == 0, capfd.readouterr().err
    before = load_run(RUN)
    weights = {path: path.read_bytes() for path in RUN.rglob("*.safetensors")}
    assert len(weights) == 2
    capfd.readouterr()
    assert run(command("task=evaluate", *OTHERS), monkeypatch) == 0, capfd.readouterr().err
    after = load_run(RUN)
    assert {path: path.read_bytes() for path in RUN.rglob("*.safetensors")} == weights
    assert after.baseline == before.baseline
    assert after.retro.evaluations[:2] == before.retro.evaluations
    added = after.retro.evaluations[2:]
    found = [(entry.retrieved.share, entry.retrieved.seed, entry.retrieved.filter) for entry in added]
    assert found == [
        (1, None, None), (0.2, None, None), (0.6, None, None),
        (0.05, 0, None), (0.05, 7, None), (0.6, 0, None), (0.6, 7, None), (1, None, "new"),
    ]  # fmt: skip
    whole = after.retro.evaluation(after.retro.k).retrieved
    other, small_part, large_part, *random, filtered = (entry.retrieved for entry in added)
    assert "other" in other.database
    assert small_part.chunks < large_part.chunks < whole.chunks == filtered.chunks == after.retro.database.chunks
    assert small_part.tokens < large_part.tokens < whole.tokens == after.retro.database.tokens
    assert {part.unit for part in random} == {"chunk"}
    assert random[0].complete < random[2].complete <= 1
    assert all((part.complete == 1) == (part.share > part.complete_above) for part in random)
    assert len({entry.bits_per_byte for entry in added}) == len(added)

    table = (RUN / "report" / "tables" / "comparison.md").read_text(encoding="utf-8")
    for name in ("20% of the database", "60% of the database", "60% at random, 2 seeds", "filter new"):
        assert table.count(f"RETRO[On], {name}") == 1
    assert (RUN / "report" / "figures" / "database.svg").is_file()
    assert "neighbors were left" in (RUN / "report" / "index.html").read_text(encoding="utf-8")

    # A second evaluation has nothing to measure, and one of a smaller database finds the score of the same part.
    result = (RUN / "retro" / "result.json").read_bytes()
    assert run(command("task=evaluate", *OTHERS), monkeypatch) == 0, capfd.readouterr().err
    assert (RUN / "retro" / "result.json").read_bytes() == result
    smaller = ["task=evaluate", "database.fraction=0.2", "database.fractions=[0.2,0.6]"]
    assert run(command(*smaller), monkeypatch) == 0, capfd.readouterr().err
    assert set(load_run(RUN).retro.evaluations) == set(after.retro.evaluations)
