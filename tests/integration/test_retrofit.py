"""RETROfit of a pretrained decoder in a folder, through the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from in_process import furnish, run
from safetensors.torch import load_file, save_file

from retro_lab.errors import ArtifactError
from retro_lab.runs.trained_model import open_model

COMMAND = [
    "backbone=hf", "corpus=local", "corpus.path=my.jsonl", "corpus.max_bytes=3e4", "corpus.validation_fraction=0.2",
    "corpus.test_fraction=0.2", "embedder.model=embedder", "data.sequence_length=64", "data.batch_size=4",
    "evaluation.stride=32", "evaluation.curve_points=1", "evaluation.curve_tokens=200", "size.encoder_layers=1",
    "size.encoder_width=16", "size.encoder_ffw_width=32", "size.encoder_heads=2", "size.encoder_head_size=8",
    "schedule.warmup_steps=1", "optimizer.lr=1e-2",
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_llama: Path) -> Path:
    folder = furnish(tmp_path_factory.mktemp("workplace"), tiny_bert)
    shutil.copytree(tiny_llama, folder / "llama")
    return folder


def command(workplace: Path, *arguments: str, steps: int = 4) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        given = [*COMMAND, "backbone.model=llama", f"schedule.tokens={steps * 4 * 64}", *arguments]
        assert run(given, patch) == 0


def record(workplace: Path, name: str, model: str) -> dict:
    return json.loads((workplace / "outputs" / name / model / "result.json").read_text())


@pytest.fixture(scope="module")
def fitted(workplace: Path) -> Path:
    command(workplace, "name=fitted")
    return workplace / "outputs" / "fitted"


def test_a_retrofit_of_a_folder_is_scored_beside_its_base(workplace: Path, fitted: Path) -> None:
    """The base is not trained, and RETRO[Off] scores what it scores to the last bit."""
    base, retro = (record(workplace, "fitted", model) for model in ("baseline", "retro"))
    assert (base["steps"], base["tokens"], retro["steps"]) == (0, 0, 4)
    off, on = (next(entry for entry in retro["evaluations"] if entry["k"] == k) for k in (0, 1))
    assert off == base["evaluations"][0]
    assert on["bits_per_byte"] != off["bits_per_byte"]
    report = (fitted / "report" / "index.html").read_text()
    assert "base model, not trained" in report
    assert "RETRO[On] has also learned from the corpus" in report


def test_only_new_weights_are_saved_and_the_base_is_known_by_its_hash(
    workplace: Path, fitted: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    assert load_file(fitted / "baseline" / "model.safetensors") == {}
    saved = load_file(fitted / "retro" / "model.safetensors").keys()
    assert saved
    assert all(name.startswith(("cca.", "encoder.")) for name in saved)
    opened = open_model(fitted)
    base = load_file(workplace / "llama" / "model.safetensors")
    assert all(torch.equal(value, opened.model.state_dict()[f"base.{name}"]) for name, value in base.items())
    away = shutil.move(workplace / "llama", tmp_path / "moved")
    try:
        with pytest.raises(ArtifactError, match=r"a RETROfit of .*llama, which is not there; say where it is now"):
            open_model(fitted)
        assert torch.equal(
            open_model(fitted, base=str(away)).model.state_dict()["base.lm_head.weight"], base["lm_head.weight"]
        )
        other = shutil.copytree(away, tmp_path / "other")
        save_file({name: value + 1 for name, value in base.items()}, other / "model.safetensors", {"format": "pt"})
        with pytest.raises(ArtifactError, match=r"a RETROfit of other weights than those of .*other \(SHA-256"):
            open_model(fitted, base=str(other))
    finally:
        shutil.move(away, workplace / "llama")
