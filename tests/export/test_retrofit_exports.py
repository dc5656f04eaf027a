"""The export of a RETROfit is a folder by itself, with the weights of its base in it."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_exports import K, M, R, found_for, neighbors_of, our_own
from transformers import AutoConfig, AutoModelForCausalLM

from retro_lab.export.card import model_card

FAMILIES = ["gemma3_text", "gpt2", "llama", "llama, tied", "mixtral", "opt"]
TOKENS = torch.randint(300, (2, 14), generator=torch.Generator().manual_seed(1))
NEIGHBORS = torch.randint(300, (2, 3, K, R), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_reloaded_logits_are_identical(exported_retrofit, family):
    export = exported_retrofit(family)
    own, (found, report) = (
        export.trained.model,
        AutoModelForCausalLM.from_pretrained(export.folder, output_loading_info=True),
    )
    assert not any(report.values()), report
    assert torch.equal(found(TOKENS).logits, own.logits(own(TOKENS)))
    assert torch.equal(found(TOKENS).logits, own.base(TOKENS).logits)
    on = found(TOKENS, neighbors=NEIGHBORS).logits
    assert torch.equal(on, own.logits(own(TOKENS, NEIGHBORS)))
    assert not torch.equal(on, found(TOKENS).logits)
    assert found.get_output_embeddings() is found.model.base.get_output_embeddings()
    assert all(parameter.requires_grad for parameter in found.parameters())


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generate_writes_what_is_written_here(exported_retrofit, family):
    """With live retrieval, and prompts of unequal length in one batch."""
    export = exported_retrofit(family)
    model = AutoModelForCausalLM.from_pretrained(export.folder, dtype=torch.float64)
    prompts = [TOKENS[0, :7], TOKENS[1, :10]]
    ids, mask = torch.zeros(2, 10, dtype=torch.long), torch.zeros(2, 10, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, 10 - len(prompt) :], mask[row, 10 - len(prompt) :] = prompt, 1
    own = export.trained.model
    for retrieve in (neighbors_of, None):
        options = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
        found = model.generate(ids, retrieve=retrieve, **options)
        wanted = our_own(own.double(), prompts, 9, found_for if retrieve else None, length=32)
        own.float()
        assert [row.tolist()[10 - len(prompt) :] for row, prompt in zip(found, prompts, strict=True)] == wanted
    beams = model.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=6, retrieve=neighbors_of)
    again = model.generate(
        ids, attention_mask=mask, num_beams=3, max_new_tokens=6, retrieve=neighbors_of, use_cache=False
    )
    assert torch.equal(beams, again)


def test_the_card_names_the_base(exported_retrofit, retro):
    settings = exported_retrofit("llama").trained.settings
    card = model_card("mine", retro, settings)
    assert "A RETROfit ([Borgeaud et al. 2022](https://arxiv.org/abs/2112.04426)) of base, made with" in card
    assert "its weights left as they are" in card
    assert settings.backbone.sha256 in card
    assert settings.backbone.model not in card
    assert "license" in card
    assert "base_model" not in card
    hub = replace(settings, backbone=replace(settings.backbone, model="org/sample", commit="a" * 40, frozen=False))
    card = model_card("mine", retro, hub)
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "org/sample"
    assert f"org/sample, commit {'a' * 40}" in card
    assert "its weights trained further" in card
    assert "The pretrained model org/sample, trained further" in model_card("mine", retro, replace(hub, k=0))


def test_the_folder_holds_all_weights_once_and_no_path_of_this_machine(exported_retrofit):
    export = exported_retrofit("llama, tied")
    weights = load_file(export.folder / "model.safetensors")
    total = sum(parameter.numel() for parameter in export.trained.model.parameters())
    assert sum(value.numel() for value in weights.values()) == total
    config = (export.folder / "config.json").read_text()
    assert str(export.folder.parents[1]) not in config
    assert json.loads(config)["settings"]["backbone"]["model"] == "base"
    fresh = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(export.folder))
    assert fresh.model.base.lm_head.weight is fresh.model.base.model.embed_tokens.weight
    assert all(torch.isfinite(parameter).all() for parameter in fresh.parameters())
    assert fresh.model.chunk_length == M
