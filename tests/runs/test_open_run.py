"""A trained model opens from its folder alone, wherever that was copied to, and says what is wrong with it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from retro_lab import open_run
from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.errors import ArtifactError
from retro_lab.model.config import ModelConfig, Positions, SizeConfig
from retro_lab.model.sharding import whole_weights
from retro_lab.retrieval.config import Value
from retro_lab.runs.trained_model import ModelSettings, save_model

WORDS = ["<|endoftext|>", "the", "frozen", "encoder", "embeds", "chunks"]
M, R = 4, 8


def settings(k: int) -> ModelSettings:
    size = SizeConfig(
        name="small",
        width=16,
        ffw_width=32,
        heads=2,
        head_size=8,
        layers=2,
        cca_layers=[2] if k else [],
        encoder_width=16,
        encoder_ffw_width=32,
        encoder_heads=2,
        encoder_head_size=8,
        encoder_layers=1,
    )
    model = ModelConfig(chunk_length=M, positions=Positions.rotary)
    return ModelSettings(
        size=size,
        model=model,
        vocabulary_size=len(WORDS),
        k=k,
        value=Value.neighbor_and_continuation,
        sequence_length=8,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a baseline and a RETRO, as training leaves them."""
    run = tmp_path_factory.mktemp("run")
    vocabulary = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="the"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = DocumentTokenizer.adapt(vocabulary, WORDS[0])
    for name, k in (("baseline", 0), ("retro", 2)):
        torch.manual_seed(k)
        save_model(run / name, whole_weights(settings(k).build()), settings(k), tokenizer)
    return run


def logits(run: Path) -> torch.Tensor:
    """Logits of the RETRO for a fixed input."""
    opened = open_run(run)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(WORDS), (2, 8), generator=generator)
    neighbors = torch.randint(len(WORDS), (2, 2, 2, R), generator=generator)
    with torch.no_grad():
        return opened.model.logits(opened.model(tokens, neighbors))


def test_a_copied_folder_gives_bit_equal_logits_in_a_fresh_process(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "somewhere" / "else"
    shutil.copytree(trained, copy)
    code = (
        f"import sys, torch; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_open_run as test; "
        f"from pathlib import Path; torch.save(test.logits(Path({str(copy)!r})), 'logits.pt')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits(trained))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logits.pt", "somewhere"], "there is no artifact store"


def test_a_run_opens_as_its_retro_unless_a_model_is_named(trained: Path) -> None:
    assert open_run(trained).settings == open_run(trained / "retro").settings == settings(2)
    assert open_run(str(trained), "baseline").settings == settings(0)
    assert not open_run(trained).model.training
    assert open_run(trained).tokenizer.decode(open_run(trained).tokenizer.encode(["frozen chunks"])) == [
        "frozen chunks"
    ]


@pytest.mark.parametrize("model", [None, "retro"])
def test_a_folder_without_a_model_is_named(tmp_path: Path, model: str | None) -> None:
    with pytest.raises(ArtifactError, match=r"nothing holds no trained (model|retro): there is no model\.json"):
        open_run(tmp_path / "nothing", model)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1]), "its bytes are not those"),
        ("model.safetensors", lambda content: content[:100], "its bytes are not those"),
        ("tokenizer.json", lambda content: content.replace(b"frozen", b"froze"), "it is not the one that was written"),
        ("tokenizer.json", lambda content: b"{", "damaged"),
        ("model.json", lambda content: content[:50], "damaged"),
        (
            "model.json",
            lambda content: content.replace(b'"width": 16', b'"width": "w"', 1),
            "Input should be a valid int",
        ),
        ("model.json", lambda content: content.replace(b"rotary", b"rotatory"), "positions: Input should be"),
        ("model.json", lambda content: b"[]", "damaged"),
    ],
)
def test_a_damaged_file_is_named_with_the_cure(
    trained: Path, tmp_path: Path, name: str, damage: object, reason: str
) -> None:
    shutil.copytree(trained / "retro", tmp_path / "retro")
    path = tmp_path / "retro" / name
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=reason) as caught:
        open_run(tmp_path)
    assert str(path) in str(caught.value)
    assert "copy the run's folder again, or delete result.json" in str(caught.value)


def test_weights_that_are_missing_are_named(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "retro", tmp_path / "retro")
    (tmp_path / "retro" / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"there is no model\.safetensors"):
        open_run(tmp_path)


def test_the_folder_says_what_the_model_is(trained: Path) -> None:
    content = json.loads((trained / "retro" / "model.json").read_text())
    assert (content["k"], content["value"], content["model"]["positions"]) == (2, "neighbor_and_continuation", "rotary")
