"""`import retro_lab` is all that transformers needs, whichever of the two is imported first."""

import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from retro_lab.export import registration
from retro_lab.export.configuration import RetroConfig

FRESH = """
import sys
import retro_lab
assert not {{"torch", "transformers", "numpy"}} & {{*sys.modules}}, "import retro_lab takes no time"
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "retro_lab.export.modeling" not in sys.modules, "what is not used is not imported"
model = AutoModelForCausalLM.from_pretrained({folder!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})
prompt = tokenizer("def encode", return_tensors="pt")
neighbors = torch.arange(64).view(1, 2, 2, 16)[..., :8]
with torch.no_grad():
    found = [model(**prompt).logits, model(**prompt, neighbors=neighbors.expand(1, 2, 2, 8)).logits]
torch.save([prompt["input_ids"], neighbors, *found, model.generate(**prompt, max_new_tokens=6)], "found.pt")
retrofit = AutoModelForCausalLM.from_pretrained({retrofit!r})
with torch.no_grad():
    found = [retrofit(**prompt).logits, retrofit(**prompt, neighbors=neighbors.expand(1, 2, 2, 8)).logits]
torch.save([*found, retrofit.generate(**prompt, max_new_tokens=6)], "retrofit.pt")
"""


def test_a_fresh_process_with_transformers_alone_loads_a_retro_and_a_retrofit(
    exported, exported_retrofit, tmp_path: Path
):
    export, retrofit = exported("paper"), exported_retrofit("llama, tied")
    code = FRESH.format(folder=str(export.folder), retrofit=str(retrofit.folder))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tokens, neighbors, off, on, generated = torch.load(tmp_path / "found.pt", weights_only=True)
    own = export.trained
    assert tokens[0].tolist() == own.tokenizer.encode(["def encode"])[0].tolist()
    assert tokens.shape[1] >= 4, "a chunk retrieves"
    with torch.no_grad():
        assert torch.equal(off, own.model.logits(own.model(tokens)))
        assert torch.equal(on, own.model.logits(own.model(tokens, neighbors)))
    assert not torch.equal(off, on)
    assert generated.shape[1] == tokens.shape[1] + 6
    model = retrofit.trained.model
    off, on, generated = torch.load(tmp_path / "retrofit.pt", weights_only=True)
    with torch.no_grad():
        assert torch.equal(off, model.base(tokens).logits)
        assert torch.equal(on, model.logits(model(tokens, neighbors)))
    assert not torch.equal(off, on)
    assert generated.shape[1] == tokens.shape[1] + 6


def test_transformers_may_be_imported_first(exported, monkeypatch):
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, RetroConfig.model_type)
    registration.register()
    folder = exported("paper").folder
    assert type(AutoConfig.from_pretrained(folder)) is RetroConfig
    assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "RetroForCausalLM"
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"


def test_other_imports_are_left_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, registration.AUTO_CLASSES)
    before = list(sys.meta_path)
    monkeypatch.setattr(sys, "meta_path", list(before))
    registration.register()
    registration.register()
    [finder, *others] = sys.meta_path
    assert others == before, "it waits once, however often it is asked to"
    assert finder.find_spec("json", None) is None
    assert sys.meta_path[0] is finder
