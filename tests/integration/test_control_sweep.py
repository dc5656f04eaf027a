"""The sweep over controls, on a text of which it is known what each kind of neighbor can tell.

Its documents are made of passages, each of several chunks of letters drawn at random, and each in several documents.
Only another document with the same passage says how it goes on: true neighbors help, but not at a passage's beginning.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from in_process import furnish, run

from retro_lab.runs.records import load_run
from retro_lab.runs.sweeps import load_sweep

LETTERS, PASSAGES, CHUNK_LENGTH = 40, 150, 8
SWEPT = [
    "corpus=local", "corpus.path=passages.jsonl", "corpus.validation_fraction=0.05", "corpus.test_fraction=0.1",
    "decontamination=none", "tokenizer.vocabulary_size=257", f"model.chunk_length={CHUNK_LENGTH}",
    "data.sequence_length=32", "data.batch_size=16", "schedule.tokens=60000", "schedule.warmup_steps=10",
    "optimizer.lr=1e-2", "retrieval.stored=4", "retrieval.method=bm25", "logger=none",
    "evaluation.stride=32", "evaluation.curve_points=1", "evaluation.curve_tokens=200",
    "size.width=32", "size.heads=2", "size.head_size=16", "size.layers=1", "size.cca_layers=[1]", "size.ffw_width=32",
    "size.encoder_width=32", "size.encoder_heads=2", "size.encoder_head_size=16", "size.encoder_ffw_width=32",
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    folder = furnish(tmp_path_factory.mktemp("controls"), tiny_bert)
    draw = np.random.default_rng(0)
    letters = [chr(ord("0") + number) for number in range(LETTERS)]
    pool = ["".join(draw.choice(letters, 4 * CHUNK_LENGTH)) for _ in range(PASSAGES)]
    rows = [{"text": "".join(draw.choice(pool, 8, replace=False))} for _ in range(110)]
    (folder / "passages.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_a_gain_is_of_what_neighbors_say(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    assert run(["+sweep=controls", "name=controls", *SWEPT], monkeypatch) == 0, capfd.readouterr().err
    sweep = load_sweep(Path("outputs/sweeps/controls"))
    assert sweep.axes == ("retrieval.control",)
    cells = {cell.overrides["retrieval.control"]: cell for cell in sweep.cells}
    assert list(cells) == ["null", "random", "shuffled", "oracle"]
    assert all(cell.run.longer_baseline is None for cell in sweep.cells)
    [level] = {cell.run.baseline.evaluation(0).bits_per_byte for cell in sweep.cells}
    # No model knows letters drawn at random before it sees them, but for the few passages that it learns by heart.
    assert level == pytest.approx(math.log2(LETTERS), abs=0.05)
    gains = {}
    for name, cell in cells.items():
        retro = cell.run.retro
        gains[name] = level - retro.evaluation(retro.k).bits_per_byte
    # One random chunk in 150 is of the same passage by chance, and one in 600 the right one: 0.01 bits a neighbor.
    assert abs(gains["random"]) < 0.05
    assert abs(gains["shuffled"]) < 0.05
    assert gains["null"] > 1
    assert gains["oracle"] > gains["null"] + 0.5

    # What was trained with true neighbors is scored with random ones as well: then they say nothing.
    folder = Path("outputs/sweeps/controls/retrieval.control=null")
    evaluate = ["+experiment=quickstart", "task=evaluate", "paths.outputs=outputs/sweeps/controls"]
    evaluate += ["name='retrieval.control=null'", "retrieval.control=random"]
    assert run([*evaluate, *SWEPT], monkeypatch) == 0, capfd.readouterr().err
    before, after = cells["null"].run.retro, load_run(folder).retro
    assert set(before.evaluations) < set(after.evaluations)
    [scored] = set(after.evaluations) - set(before.evaluations)
    assert scored.retrieved.database.endswith("(random neighbors)")
    assert scored.bits_per_byte > level - 0.05
