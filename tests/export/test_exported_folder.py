"""The folder of an export: what is in it, what it may replace, and that it is never half written."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from tiny_exports import RUN
from transformers import AutoModelForCausalLM

from retro_lab.config.compose import compose
from retro_lab.errors import ArtifactError, ConfigurationError, RetroLabError
from retro_lab.export import folder as export_folder
from retro_lab.export.folder import write_export
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.identity import write_identity
from retro_lab.runs.records import write_result
from retro_lab.runs.trained_model import open_model, save_model
from retro_lab.tasks import export as task
from retro_lab.tasks.task_config import ExportConfig

FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
FILES += ["tokenizer_config.json"]
BIG = 5_000_000_000


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["paper", "rotary", "masks"])
def test_weights_are_stored_once_for_torch(exported, name):
    export = exported(name)
    assert names(export.folder) == FILES
    own = export.trained.model.state_dict()
    with safe_open(export.folder / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert {key.removeprefix("model.") for key in file.keys()} == set(own)  # noqa: SIM118
    generation = json.loads((export.folder / "generation_config.json").read_text())
    marker = export.trained.tokenizer.document_marker
    assert {generation[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")} == {marker}
    config = json.loads((export.folder / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["RetroForCausalLM"], "retro_lab")
    assert "auto_map" not in config


@torch.no_grad()
def test_large_weights_are_divided_into_several_files(exported, tmp_path):
    export = exported("paper")
    write_export(tmp_path / "parts", export.trained, RUN, "", shard_bytes=20_000)
    parts = sorted((tmp_path / "parts").glob("model-*.safetensors"))
    assert len(parts) > 2
    assert (tmp_path / "parts" / "model.safetensors.index.json").is_file()
    tokens = torch.arange(9)[None]
    found, wanted = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "parts", export.folder))
    assert torch.equal(found(tokens).logits, wanted(tokens).logits)
    # In its place, a later export of the same model leaves none of these files behind.
    write_export(tmp_path / "parts", export.trained, RUN, "", shard_bytes=BIG)
    assert names(tmp_path / "parts") == FILES


def test_only_an_export_is_replaced_and_another_one_only_if_asked(exported, tmp_path):
    trained, target = exported("paper").trained, tmp_path / "target"
    write_export(target, trained, RUN, "first", shard_bytes=BIG)
    write_export(target, trained, RUN, "again", shard_bytes=BIG)
    assert (target / "README.md").read_text() == "again"
    other = RUN | {"identity": "4567"}
    with pytest.raises(ConfigurationError, match=r"target holds another model; .*task\.overwrite=true"):
        write_export(target, trained, other, "other", shard_bytes=BIG)
    write_export(target, trained, other, "other", shard_bytes=BIG, overwrite=True)
    assert (target / "README.md").read_text() == "other"
    (target / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigurationError, match=r"target holds notes\.txt, which no export wrote"):
            write_export(target, trained, other, "other", shard_bytes=BIG, overwrite=overwrite)
    with pytest.raises(ConfigurationError, match=r"README\.md is a file"):
        write_export(target / "README.md", trained, other, "other", shard_bytes=BIG)
    assert (target / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    write_export(tmp_path / "empty", trained, RUN, "", shard_bytes=BIG)
    assert names(tmp_path) == ["empty", "target"]


@pytest.mark.parametrize("broken", ["save", "sync", "rename"])
def test_a_failure_leaves_what_was_there(exported, tmp_path, monkeypatch, broken):
    trained, target = exported("paper").trained, tmp_path / "target"
    write_export(target, trained, RUN, "first", shard_bytes=BIG)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def fail_to_place(self, other, rename=Path.rename):
        return fail() if self.name.endswith(".tmp") else rename(self, other)

    if broken == "save":
        monkeypatch.setattr(export_folder.RetroForCausalLM, "save_pretrained", fail)
    elif broken == "sync":
        monkeypatch.setattr(export_folder, "sync", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail_to_place)
    with pytest.raises(ArtifactError, match=r"Cannot write .*target \(.*No space left"):
        write_export(target, trained, RUN, "second", shard_bytes=BIG)
    assert names(tmp_path) == ["target"]
    assert names(target) == FILES
    assert (target / "README.md").read_text() == "first"


@pytest.fixture(scope="module")
def settings():
    return compose(["task=export", "+experiment=quickstart"])


@pytest.fixture
def run(exported, tmp_path, monkeypatch, baseline, retro, settings):
    """A finished run with a RETRO and a baseline, and a function that exports from it."""
    folder = RunFolder(tmp_path / "my_run", ("+experiment=quickstart", "task=export"))
    records = {"retro": retro, "baseline": baseline}
    for name, source in (("retro", "paper"), ("baseline", "baseline")):
        trained = exported(source).trained
        save_model(folder.model(name), trained.model.state_dict(), trained.settings, trained.tokenizer)
        write_identity(folder.model(name), {"seed": 0, "model": name})
        write_result(folder.model(name) / "result.json", records[name])
    monkeypatch.chdir(tmp_path)
    return lambda **chosen: task.run(replace(settings, task=ExportConfig(**chosen)), folder)


def test_the_task_writes_the_retro_with_a_card_of_its_run(run, tmp_path, capfd, retro):
    run()
    run(folder="to/hub")
    target = tmp_path / "to" / "hub"
    assert names(target) == names(tmp_path / "my_run" / "retro" / "export") == FILES
    assert "exported" in capfd.readouterr().err
    config = json.loads((target / "config.json").read_text())
    assert config["settings"]["k"] == 2
    assert (config["run"]["name"], config["run"]["model"]) == ("my_run", "retro")
    text = (target / "README.md").read_text()
    _, metadata, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    data = yaml.safe_load(metadata)
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    scores = {
        metric["name"]: metric["value"] for entry in data["model-index"][0]["results"] for metric in entry["metrics"]
    }
    assert scores == {"bits per byte, k=2": 1.9, "bits per byte, k=0": 2.1}
    for fact in (
        "# hub",
        "6,500,000 parameters (5,200,000 without embeddings), 2 neighbors for each chunk of 4 tokens",
        'from_pretrained("hub")',
        "| test split of python_source | 2 | 22,000 chunks of python_source (Flat) | 1.9000 |",
        "| test split of python_source | 0 | nothing | 2.1000 |",
        "| data | python_source: 400,000 tokens in 300 documents |",
        "| near-copies of each other | 1,234 dropped from 0.8 on |",
        "| near-copies of held-out documents | were kept |",
        "| commit | abc123 |",
        "    python -m retro_lab +experiment=quickstart\n",
        "copy from its database",
    ):
        assert fact in body
    run(folder="to/hub", model="retro")


def test_the_task_writes_the_baseline_when_asked_and_refuses_what_is_not_there(run, tmp_path, retro):
    run(model="baseline", folder="base")
    assert json.loads((tmp_path / "base" / "config.json").read_text())["settings"]["k"] == 0
    assert "The model takes no neighbors." in (tmp_path / "base" / "README.md").read_text()
    with pytest.raises(ConfigurationError, match="base holds another model"):
        run(folder="base")
    run(folder="base", overwrite=True)
    with pytest.raises(RetroLabError, match=r"holds no finished longer_baseline; to train one: python -m retro_lab"):
        run(model="longer_baseline")
    with pytest.raises(ConfigurationError, match=r"task\.model must be one of baseline"):
        run(model="other")
    stopped = replace(retro, planned_steps=2000, stopped="EarlyStopping")
    write_result(tmp_path / "my_run" / "retro" / "result.json", stopped)
    run(folder="stopped")
    assert "stopped by EarlyStopping after 1,000 of 2,000 steps" in (tmp_path / "stopped" / "README.md").read_text()
    (tmp_path / "my_run" / "retro" / "identity.json").unlink()
    with pytest.raises(ArtifactError, match=r"identity\.json cannot be read"):
        run(folder="new")
    assert not (tmp_path / "new").exists()
    assert open_model(tmp_path / "my_run").settings.k == 2
