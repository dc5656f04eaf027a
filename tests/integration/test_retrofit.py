"""RETROfit of a pretrained decoder in a folder, through the command line."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import furnish, run, run_in
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from retro_lab.config.compose import compose
from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.errors import ArtifactError, ConfigurationError
from retro_lab.runs.trained_model import open_model
from retro_lab.tasks.assemble import model_settings
from retro_lab.training.module import RetroModule

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
        base = [] if any(argument.startswith("backbone.model=") for argument in arguments) else ["backbone.model=llama"]
        given = [*COMMAND, *base, f"schedule.tokens={steps * 4 * 64}", *arguments]
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


def test_a_base_that_is_not_frozen_is_trained_as_long_as_its_retrofit(workplace: Path, tiny_llama: Path) -> None:
    """Both are saved whole, tied weights once, and open without the base."""
    torch.manual_seed(0)
    tied = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_llama, tie_word_embeddings=True))
    shutil.copytree(tiny_llama, workplace / "tied")
    tied.save_pretrained(workplace / "tied")
    command(workplace, "name=free", "init.frozen=false", "backbone.model=tied", "schedule.warmup_steps=0", steps=2)
    shutil.rmtree(workplace / "tied")
    base, retro = (record(workplace, "free", model) for model in ("baseline", "retro"))
    assert (base["steps"], base["tokens"]) == (retro["steps"], retro["tokens"]) == (2, 512)
    off, before = retro["evaluations"][0]["bits_per_byte"], base["evaluations"][0]["bits_per_byte"]
    assert off != before, "RETRO[Off] is another model than the baseline"
    for model in ("baseline", "retro"):
        weights = load_file(workplace / "outputs" / "free" / model / "model.safetensors")
        assert ("base.lm_head.weight" in weights) != ("base.model.embed_tokens.weight" in weights)
        opened = open_model(workplace / "outputs" / "free", model).model
        assert opened.base.lm_head.weight is opened.base.model.embed_tokens.weight
        assert sum(value.numel() for value in weights.values()) == sum(p.numel() for p in opened.parameters())
        state = opened.base.state_dict()
        assert not any(torch.equal(value, state[name]) for name, value in tied.named_parameters())


def test_a_retrofit_that_was_killed_goes_on_and_may_hold_its_base(
    workplace: Path, fitted: Path, tmp_path: Path
) -> None:
    """From a checkpoint without the base's weights to those of the run that was left alone, to the last bit."""
    arguments = ["name=killed", "task=train", "backbone.save_base=true", "callbacks.checkpoint.every_n_train_steps=1"]
    step = RetroModule.training_step

    def killed(module: RetroModule, *given: Any) -> Any:
        if module.global_step == 3:
            raise KeyboardInterrupt
        return step(module, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RetroModule, "training_step", killed)
        with suppress(KeyboardInterrupt, AssertionError):
            command(workplace, *arguments)
    assert not (workplace / "outputs" / "killed" / "retro" / "result.json").exists()
    command(workplace, *arguments)
    found, expected = (
        load_file(folder / "retro" / "model.safetensors") for folder in (workplace / "outputs" / "killed", fitted)
    )
    base = {f"base.{name}": value for name, value in load_file(workplace / "llama" / "model.safetensors").items()}
    assert found.keys() == expected.keys() | base.keys()
    for name, value in {**expected, **base}.items():
        assert torch.equal(found[name], value), name
    away = shutil.move(workplace / "llama", tmp_path / "moved")
    try:
        opened = open_model(workplace / "outputs" / "killed").model
    finally:
        shutil.move(away, workplace / "llama")
    tokens, neighbors = torch.arange(64)[None], torch.arange(256).view(1, 4, 2, 32)
    with torch.no_grad():
        own = open_model(fitted).model
        assert torch.equal(opened(tokens, neighbors), own(tokens, neighbors))
        assert not torch.equal(opened(tokens, neighbors), own(tokens))


def test_what_a_base_cannot_do_is_refused_in_a_sentence(workplace: Path, fitted: Path) -> None:
    done = run_in(workplace, [*COMMAND, "backbone.model=llama", "data.sequence_length=192", "evaluation.stride=64"])
    assert done.returncode == 2
    assert "data.sequence_length=192 is more than the 128 positions of" in " ".join(done.stderr.split())
    few = shutil.copytree(workplace / "llama", workplace / "few")
    settings = json.loads((few / "config.json").read_text())
    (few / "config.json").write_text(json.dumps(settings | {"vocab_size": 256}))
    config, tokenizer = compose([*COMMAND, f"backbone.model={few}"]), DocumentTokenizer.load(fitted / "retro")
    with pytest.raises(ConfigurationError, match=r"marker has the id 256, outside of the 256 ids of .*few; set token"):
        model_settings(config, tokenizer)
    question = {"question": "Who?", "answers": ["I"], "passages": [{"title": "A", "text": "B"}] * 20}
    (workplace / "questions.jsonl").write_text(json.dumps(question) + "\n")
    asked = ["task=answer", f"task.start={fitted}", "task.train=questions.jsonl", "task.validation=questions.jsonl"]
    done = run_in(workplace, [*asked, "data.sequence_length=64"])
    assert done.returncode == 2, done.stderr
    assert "is a RETROfit of a pretrained decoder, and task=answer fine-tunes" in " ".join(done.stderr.split())


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
