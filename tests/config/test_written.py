"""What a run's folder says of its database is what the command composed."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from retro_lab.config.check import as_written, typed
from retro_lab.config.corpora import missing_corpora
from retro_lab.config.session import session
from retro_lab.config.written import DECIDE_DATABASE, database_config, find_config
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.trained_model import ModelSettings


@pytest.mark.parametrize(
    "overrides",
    [
        ["+experiment=quickstart", "task=plan", "retrieval.method=bm25", "index.metric=cosine"],
        ["+experiment=paper_172m"],
        ["corpus=local", "corpus.path=a.jsonl", "database.corpus=wikipedia", "tokenizer=pretrained",
         "tokenizer.name=gpt2"],
        ["backbone=hf", "backbone.model=BASE"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_settings_of_a_folder_are_those_that_were_composed(overrides: list[str], tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 7}))
    overrides = [text.replace("BASE", str(base)) for text in overrides]
    with session() as assemble:
        config = assemble([*overrides, *missing_corpora([assemble(overrides)])])
        composed = typed(config, resolve_all=False)
        settings = {name: value for name, value in as_written(config).items() if name != "hydra"}
    RunFolder(tmp_path, tuple(overrides), settings).note()
    (base / "config.json").unlink()  # the decoder may be elsewhere now
    model = ModelSettings(
        size=composed.size, model=composed.model, vocabulary_size=300, k=2, value=composed.retrieval.value,
        sequence_length=composed.data.sequence_length,
    )  # fmt: skip
    run = find_config(tmp_path / "retro")
    assert (run.path, run.overrides) == (tmp_path, tuple(overrides))
    read = database_config(run, model)
    # A corpus inside a corpus is a plain table here, of which the same source is made.
    expected, found = asdict(composed), asdict(read)
    assert {name: found[name] for name in DECIDE_DATABASE} == {name: expected[name] for name in DECIDE_DATABASE}
    for name, corpus in {"": read.corpus, **read.corpora}.items():
        assert type(corpus) is type(composed.corpora[name] if name else composed.corpus)
    assert type(read.tokenizer) is type(composed.tokenizer)
