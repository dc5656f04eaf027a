"""Bases of RETROfit come from folders, GGUF files and the hub, as numbers alone, and are known by their hash."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM

from retro_lab.errors import ConfigurationError
from retro_lab.runs.base_model import BaseModel, base_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).to(torch.bfloat16).save_pretrained(folder / "one")
    BaseModel.of(str(folder / "one")).load().save_pretrained(folder / "many", max_shard_size="8KB")
    return folder


def test_a_folder_is_read_in_float32_whatever_it_holds(saved: Path) -> None:
    base = BaseModel.of(str(saved / "one")).load()
    assert base.dtype == torch.float32
    assert not base.training
    for name, value in load_file(saved / "one" / "model.safetensors").items():
        assert torch.equal(base.state_dict()[name], value.float())
    assert BaseModel.of(str(saved / "one")).load(torch.bfloat16).dtype == torch.bfloat16


def test_the_hash_names_the_weights(saved: Path, tmp_path: Path) -> None:
    one, many = (BaseModel.of(str(saved / name)) for name in ("one", "many"))
    assert one.commit is None
    assert len(many.weights_files) > 1
    assert all(torch.equal(a, b) for a, b in zip(one.load().parameters(), many.load().parameters(), strict=True))
    copied = Path(shutil.copytree(saved / "many", tmp_path / "copy"))
    assert BaseModel.of(str(copied)).sha256 == many.sha256
    part = BaseModel.of(str(copied)).weights_files[1]
    save_file({name: value + 1 for name, value in load_file(part).items()}, part, metadata={"format": "pt"})
    assert BaseModel.of(str(copied)).sha256 != many.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pickle", r"has no weights as safetensors .* can run code and are not read"),
        ("no config", r"holds no model: there is no config.json"),
        ("bert", r"architecture 'bert' cannot be RETROfitted; these can: .*llama"),
        ("multimodal", r"architecture 'gemma3' cannot be RETROfitted"),
        ("own code", r"cannot be read by transformers"),
        ("quantized", r"is quantized, and RETROfit needs whole weights"),
        ("lacking", r"lacks 1 of the model's weights, model.norm.weight among them"),
        ("damaged", r"cannot be read by transformers"),
    ],
)
def test_what_is_no_base_is_refused_in_a_sentence(saved: Path, tmp_path: Path, change: str, message: str) -> None:
    folder = Path(shutil.copytree(saved / "one", tmp_path / "base"))
    weights, config = folder / "model.safetensors", folder / "config.json"
    if change == "pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    elif change == "no config":
        config.unlink()
    elif change == "bert":
        BertConfig().save_pretrained(folder)
    elif change == "lacking":
        save_file({k: v for k, v in load_file(weights).items() if k != "model.norm.weight"}, weights, {"format": "pt"})
    elif change == "damaged":
        weights.write_bytes(weights.read_bytes()[:500])
    else:
        changed = {
            "multimodal": {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
            "own code": {
                "model_type": "mine",
                "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.M"},
            },
            "quantized": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        }[change]
        (folder / "mine.py").write_text("raise SystemExit('this code ran')\n")
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(ConfigurationError, match=message) as refused:
        BaseModel.of(str(folder)).load()
    assert "\n" not in str(refused.value)


def test_names_that_lead_nowhere_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"There is no file backbone.model=.*x\.gguf\.$"):
        BaseModel.of(str(tmp_path / "x.gguf"))
    with pytest.raises(ConfigurationError, match=r"backbone.revision=main names a revision on the hub"):
        BaseModel.of(str(saved / "one"), "main")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF no")
    with pytest.raises(ConfigurationError, match=r"broken.gguf (cannot be read by transformers|needs packages)"):
        BaseModel.of(str(tmp_path / "broken.gguf")).load()


def test_two_tables_in_the_files_of_a_tied_model_are_two(saved: Path, tmp_path: Path) -> None:
    """So says the configuration, too, that a run is saved and opened with."""
    folder = Path(shutil.copytree(saved / "one", tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    base = BaseModel.of(str(folder)).load()
    assert not torch.equal(base.lm_head.weight, base.model.embed_tokens.weight)
    twin = base_of(base.config.to_dict())
    twin.load_state_dict(base.state_dict())
    assert torch.equal(twin.lm_head.weight, base.lm_head.weight)
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if "lm_head" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tied = BaseModel.of(str(folder)).load()
    assert tied.config.tie_word_embeddings
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_what_changes_on_disk_is_read_again(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "one", tmp_path / "base"))
    before = BaseModel.of(str(folder))
    assert BaseModel.of(str(folder)) is before, "so that its checksum is computed once"
    (folder / "notes.txt").write_text("")
    weights = {name: value + 1 for name, value in load_file(folder / "model.safetensors").items()}
    first = before.sha256
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert BaseModel.of(str(folder)).sha256 != first
    with pytest.raises(ConfigurationError, match=r"notes\.txt is a file, but no \.gguf file"):
        BaseModel.of(str(folder / "notes.txt"))
