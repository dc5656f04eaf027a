"""An exported model computes in transformers what it computes here, in a batch or alone, with a cache or without."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_exports import CHOICES, K, M, R, found_for, neighbors_of, our_own
from transformers import AutoConfig, AutoModelForCausalLM, pipeline

from retro_lab.export.configuration import RetroConfig
from retro_lab.export.modeling import RetroForCausalLM
from retro_lab.export.neighbors import as_arrays


def load(exported, name, **options):
    export = exported(name)
    return AutoModelForCausalLM.from_pretrained(export.folder, **options)


@pytest.fixture(scope="module")
def double(exported):
    """The RETRO with the paper's positions, in float64."""
    return load(exported, "paper", dtype=torch.float64)


def some_tokens(*shape, seed=1):
    return torch.randint(300, shape, generator=torch.Generator().manual_seed(seed))


def neighbors_for(tokens, start=0):
    """Return the neighbors of all complete chunks of one sequence [1, N], [1, L, K, R] and [1, L, K]."""
    count = (tokens.shape[1] - start) // M
    chunks = tokens[0, start : start + count * M].view(count, M).numpy()
    return [torch.from_numpy(values)[None] for values in neighbors_of(chunks)]


@pytest.mark.parametrize("name", CHOICES)
@torch.no_grad()
def test_logits_are_identical(exported, name):
    export, model = exported(name), load(exported, name)
    assert type(model) is RetroForCausalLM
    assert not model.training
    own, tokens = export.trained.model, some_tokens(2, 19)
    documents = torch.zeros_like(tokens) if own.document_masks else None
    assert torch.equal(model(tokens).logits, own.logits(own(tokens, documents=documents)))
    if name == "baseline":
        with pytest.raises(ValueError, match="it takes no neighbors"):
            model(tokens, neighbors=some_tokens(2, 4, K, R))
        return
    neighbors, lengths = some_tokens(2, 4, K, R), torch.tensor([[[0, R], [3, R]] * 2] * 2)
    wanted = own.logits(own(tokens, neighbors, lengths, documents))
    found = model(tokens, neighbors=neighbors, neighbor_lengths=lengths)
    assert torch.equal(found.logits, wanted)
    assert torch.equal(
        model(tokens, neighbors=neighbors, neighbor_lengths=lengths, logits_to_keep=3).logits[:, -1], wanted[:, -1]
    )
    assert not torch.equal(wanted, model(tokens).logits)
    [same] = model(tokens, neighbors=neighbors, neighbor_lengths=lengths, return_dict=False)
    assert torch.equal(same, wanted)


def test_the_loss_is_the_mean_over_the_labels_that_count(double):
    tokens = some_tokens(2, 11)
    labels = tokens.masked_fill(torch.rand(2, 11, generator=torch.Generator().manual_seed(0)) < 0.3, -100)
    output = double(tokens, labels=labels)
    wanted = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss.double(), wanted, rtol=1e-6, atol=0)
    output.loss.backward()
    assert all(p.grad is not None for n, p in double.named_parameters() if "encoder" not in n and "cca" not in n)
    double.zero_grad(set_to_none=True)


@pytest.mark.parametrize("cached", [False, True])
@torch.no_grad()
def test_padding_changes_nothing(double, cached):
    counts, length = [13, 4, 9], 13
    rows = [some_tokens(1, count, seed=count) for count in counts]
    alone = []
    for row in rows:
        neighbors, lengths = neighbors_for(row)
        alone.append(double(row, neighbors=neighbors, neighbor_lengths=lengths).logits[0])
    batch = {side: torch.full((3, length), 7) for side in ("left", "right")}
    masks = {side: torch.zeros(3, length, dtype=torch.long) for side in batch}
    neighbors, lengths = torch.zeros(3, 3, K, R, dtype=torch.long), torch.zeros(3, 3, K, dtype=torch.long)
    for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
        for side, real in (("left", slice(length - count, None)), ("right", slice(None, count))):
            batch[side][place, real], masks[side][place, real] = row[0], 1
        of_row = neighbors_for(row)
        neighbors[place, : count // M], lengths[place, : count // M] = of_row[0][0], of_row[1][0]
    given = {"neighbors": neighbors, "neighbor_lengths": lengths, "use_cache": cached or None}
    left = double(batch["left"], attention_mask=masks["left"], **given).logits
    for place, count in enumerate(counts):
        torch.testing.assert_close(left[place, length - count :], alone[place], rtol=1e-10, atol=1e-10)
    if cached:
        with pytest.raises(ValueError, match="padding_side='left'"):
            double(batch["right"], attention_mask=masks["right"], **given)
        return
    right = double(batch["right"], attention_mask=masks["right"], **given).logits
    for place, count in enumerate(counts):
        torch.testing.assert_close(right[place, :count], alone[place], rtol=1e-10, atol=1e-10)


def test_masks_with_holes_and_of_other_shapes_are_refused(double):
    with pytest.raises(ValueError, match="padding between the tokens"):
        double(some_tokens(1, 4), attention_mask=torch.tensor([[1, 0, 1, 1]]))
    with pytest.raises(ValueError, match=r"attention_mask must be \[batch, length\]"):
        double(some_tokens(1, 4), attention_mask=torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="does not return attentions"):
        double(some_tokens(1, 4), output_attentions=True)
    with pytest.raises(NotImplementedError, match="cannot be resized"):
        double.resize_token_embeddings(400)


def padded(prompts):
    longest = max(map(len, prompts))
    ids = torch.stack([F.pad(prompt, (longest - len(prompt), 0), value=5) for prompt in prompts])
    mask = torch.stack([F.pad(torch.ones_like(prompt), (longest - len(prompt), 0)) for prompt in prompts])
    return ids, mask


@pytest.mark.parametrize("on", [False, True])
def test_greedy_generation_is_our_own(exported, double, on):
    model = deepcopy(exported("paper").trained.model).double()
    prompts = [some_tokens(count, seed=count) for count in (11, 3, 8)]
    wanted = our_own(model, prompts, 14, found_for if on else None)
    calls = []

    def retrieve(chunks):
        calls.extend(map(bytes, chunks))
        return as_arrays(found_for)(chunks)

    ids, mask = padded(prompts)
    options = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False}
    options |= {"eos_token_id": None, "retrieve": retrieve if on else None}
    for cached in (True, False):
        calls.clear()
        together = double.generate(ids, attention_mask=mask, use_cache=cached, **options)
        found = [row[len(ids[0]) - len(prompt) :].tolist() for row, prompt in zip(together, prompts, strict=True)]
        assert found == wanted
        if cached:
            assert len(calls) == on * sum((len(prompt) + 13) // M for prompt in prompts), "each chunk is searched once"
    assert double.generate(prompts[0][None], **options)[0].tolist() == wanted[0]
    if on:
        assert wanted != our_own(model, prompts, 14, None)


def test_neighbors_by_hand_and_then_a_search(double):
    prompt = some_tokens(1, 9)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "eos_token_id": None, "do_sample": False}
    neighbors, lengths = neighbors_for(prompt)
    searched = double.generate(prompt, retrieve=neighbors_of, **options)
    by_hand = double.generate(prompt, neighbors=neighbors, neighbor_lengths=lengths, retrieve=neighbors_of, **options)
    assert torch.equal(searched, by_hand)
    of_prompt = double.generate(prompt, neighbors=neighbors, neighbor_lengths=lengths, **options)
    assert torch.equal(of_prompt[:, :12], searched[:, :12]), "up to the end of the next chunk"
    with pytest.raises(ValueError, match="differ in k or r"):
        double.generate(prompt, neighbors=neighbors[..., :5], retrieve=neighbors_of, **options)
    with pytest.raises(ValueError, match=r"must return tokens \[2, k, r\]"):
        double.generate(prompt, retrieve=lambda chunks: (np.zeros((1, K, R)), np.zeros((1, K))), **options)


def test_beams_samples_and_a_cache_that_goes_on(double):
    prompts = [some_tokens(count, seed=count) for count in (6, 9)]
    ids, mask = padded(prompts)
    options = {"attention_mask": mask, "max_new_tokens": 7, "eos_token_id": None, "retrieve": neighbors_of}
    beams = [double.generate(ids, num_beams=3, use_cache=cached, **options) for cached in (True, False)]
    assert torch.equal(*beams)
    alone = double.generate(prompts[0][None], num_beams=3, **(options | {"attention_mask": None}))
    assert torch.equal(alone[0], beams[0][0, 3:])
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(double.generate(ids, do_sample=True, num_return_sequences=2, **options))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == (4, 16)
    first = double.generate(prompts[0][None], return_dict_in_generate=True, **(options | {"attention_mask": None}))
    more = options | {"attention_mask": None, "past_key_values": first.past_key_values, "max_new_tokens": 5}
    whole = double.generate(prompts[0][None], **(options | {"attention_mask": None, "max_new_tokens": 12}))
    assert torch.equal(double.generate(first.sequences, **more), whole)
    with pytest.raises(ValueError, match="stateful"):
        double.generate(prompts[0][None], assistant_model=double, max_new_tokens=3)
    with pytest.raises(ValueError, match="has a cache of its own"):
        double.generate(prompts[0][None], cache_implementation="static", max_new_tokens=3)
    with pytest.raises(ValueError, match="not used by the model"):
        double.generate(prompts[0][None], retrieves=neighbors_of, max_new_tokens=3)


def test_the_configuration_survives_a_round_trip(exported, tmp_path):
    config = AutoConfig.from_pretrained(exported("rotary").folder)
    assert type(config) is RetroConfig
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (320, 16, 3)
    assert config.max_position_embeddings == 64
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_dict() | {"_name_or_path": config.name_or_path} == config.to_dict()
    fresh = AutoModelForCausalLM.from_config(again)
    assert fresh.config.settings == config.settings
    with pytest.raises(AttributeError, match="has no settings"):
        RetroConfig().vocab_size  # noqa: B018


@torch.no_grad()
def test_other_precisions_and_device_maps(exported):
    tokens = some_tokens(1, 9)
    wanted = load(exported, "paper")(tokens).logits
    half = load(exported, "paper", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half(tokens).logits.dtype == torch.bfloat16
    torch.testing.assert_close(half(tokens).logits.float(), wanted, rtol=0.1, atol=0.1)
    mapped = load(exported, "paper", device_map="cpu")
    assert torch.equal(mapped(tokens).logits, wanted)


def test_weights_that_no_file_gives_are_drawn(exported, tmp_path):
    from safetensors.torch import load_file, save_file

    export = exported("paper")
    weights = load_file(export.folder / "model.safetensors")
    missing = {name for name in weights if name.endswith("output.weight")}
    kept = {name: values for name, values in weights.items() if name not in missing}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((export.folder / "config.json").read_text())
    found, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == missing
    state = found.state_dict()
    assert all(torch.equal(state[name], values) for name, values in kept.items())
    for name in missing:  # their standard deviation is 0.3 / sqrt(2 x layers)
        assert 0.08 < state[name].std() < 0.3
    assert len({float(state[name].sum()) for name in missing}) == len(missing)


def test_the_text_generation_pipeline(exported):
    export = exported("paper")
    write = pipeline("text-generation", model=str(export.folder))
    [[first], [second]] = write(["def encode", "The quick"], max_new_tokens=5, batch_size=2, do_sample=False)
    assert first["generated_text"].startswith("def encode")
    ids = torch.from_numpy(export.trained.tokenizer.encode(["The quick"])[0].astype(np.int64))
    [wanted] = our_own(export.trained.model, [ids], 5, None)
    assert second["generated_text"] == export.trained.tokenizer.decode([np.array(wanted)])[0]
