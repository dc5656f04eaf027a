"""Every option, experiment and sweep that is shipped composes."""

import json
from pathlib import Path

import pytest
from hydra.utils import instantiate

from retro_lab.config import catalog
from retro_lab.config.compose import compose
from retro_lab.errors import ConfigurationError
from retro_lab.tasks.assemble import model_size
from retro_lab.tasks.config import RunConfig

GIVEN = {
    "answer": ["task.start=outputs/run", "task.train=train.json", "task.validation=dev.json"],
    "local": ["corpus.path=text.jsonl"],
    "curation_corpus": ["corpus.dataset=curation.csv"],
    "wikipedia_september_2021": ["corpus.path=enwiki.xml.bz2"],
    "pretrained": ["tokenizer.name=gpt2"],
    "every_3_from_6": ["size=172m"],
    "generate": ["prompt=import"],
}
"""What some options leave to the user, or need."""
OF_A_BASE = {
    ("backbone", "hf"): [],
    ("tokenizer", "backbone"): ["backbone=hf"],
    ("experiment", "retrofit_smollm2"): [],
}
"""Options of the RETROfit of a pretrained model, and what else they need."""
PAPER = {
    "172m": (896, 16, 64, 12, [6, 9, 12]),
    "425m": (1536, 12, 128, 12, [6, 9, 12]),
    "1_5b": (2048, 16, 128, 24, [6, 9, 12, 15, 18, 21, 24]),
    "7_5b": (4096, 32, 128, 32, [6, 9, 12, 15, 18, 21, 24, 27, 30]),
}
"""Table 2 of Borgeaud et al. 2022, with P every third layer from 6."""


def shipped(*groups: str) -> list[tuple[str, str]]:
    return [(group, option) for group in groups for option in catalog.options(group)]


@pytest.mark.parametrize(
    ("group", "option"), shipped(*(group for group in catalog.groups() if group not in ("sweep", "variant")))
)
def test_every_option_composes_into_typed_settings(group: str, option: str, tmp_path: Path) -> None:
    if (group, option) in OF_A_BASE:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 7}))
        config = compose([f"{group}={option}", *OF_A_BASE[group, option], f"backbone.model={tmp_path}"])
        layers = [15, 21, 27] if group == "experiment" else [6]  # an experiment may name its own
        assert (config.size.layers, config.size.cca_layers, config.init.name) == (7, layers, "retrofit")
        assert config.tokenizer.name == str(tmp_path)  # type: ignore[attr-defined]
        return
    config = compose([f"{group}={option}", *GIVEN.get(option, [])])
    assert isinstance(config, RunConfig)
    assert config.paths.outputs == "outputs"


@pytest.mark.parametrize("option", ["gpu", "ddp"])
def test_a_trainer_that_is_chosen_wins_over_the_experiments(option: str) -> None:
    trainer = compose(["+experiment=quickstart", f"trainer={option}"]).trainer
    assert (trainer["accelerator"], trainer["precision"]) == ("gpu", "bf16-mixed")


@pytest.mark.parametrize(("group", "option"), shipped(*(group for group in catalog.groups() if group != "hydra")))
def test_every_file_says_what_it_is_for(group: str, option: str) -> None:
    assert catalog.describe(catalog.options(group)[option])


@pytest.mark.parametrize("size", PAPER)
def test_the_sizes_are_those_of_the_paper(size: str) -> None:
    shape = compose([f"size={size}"]).size
    assert (shape.width, shape.heads, shape.head_size, shape.layers, list(shape.cca_layers)) == PAPER[size]
    assert shape.name == size
    assert shape.ffw_width == 4 * shape.width
    assert (shape.encoder_width, shape.encoder_layers, list(shape.encoder_ca_layers)) == (896, 2, [1])


@pytest.mark.parametrize("group", ["trainer", "callbacks", "logger"])
def test_free_form_groups_take_what_the_user_adds(group: str) -> None:
    added = getattr(compose([f"+{group}.more={{_target_: builtins.dict}}"]), group)
    assert added["more"] == {"_target_": "builtins.dict"}


def test_a_corpus_can_be_made_from_its_settings() -> None:
    source = instantiate(compose(["corpus=local", "corpus.path=text.jsonl", "corpus.max_bytes=1e6"]).corpus)
    assert (type(source).__name__, source.max_bytes) == ("LocalSource", 1e6)


def test_a_debug_preset_wins_over_the_experiment() -> None:
    config = compose(["debug=fast", "+experiment=quickstart"])
    assert config.schedule.tokens == 4 * config.data.sequence_length * config.data.batch_size
    assert config.data.batch_size == 2


def test_the_user_wins_over_a_debug_preset() -> None:
    assert compose(["debug=fast", "+experiment=quickstart", "data.batch_size=8"]).data.batch_size == 8


@pytest.mark.parametrize("experiment", sorted(catalog.options("experiment").keys() - {"retrofit_smollm2"}))
@pytest.mark.parametrize("option", sorted(catalog.options("tokenizer").keys() - {"backbone"}))
def test_a_tokenizer_that_is_chosen_wins_over_the_experiment(experiment: str, option: str) -> None:
    chosen = compose([f"+experiment={experiment}", f"tokenizer={option}", *GIVEN.get(option, [])]).tokenizer
    assert chosen == compose([f"tokenizer={option}", *GIVEN.get(option, [])]).tokenizer


@pytest.mark.parametrize("size", catalog.options("size"))
def test_every_size_makes_a_model_of_the_quickstart(size: str) -> None:
    config = compose(["+experiment=quickstart", f"size={size}"])
    chosen = model_size(config)
    assert config.model.shared_embeddings == (chosen.width == chosen.encoder_width)
    assert compose(["+experiment=quickstart"]).model.shared_embeddings is True


def test_the_experiments_vocabularies_are_theirs_and_can_be_overridden() -> None:
    assert compose(["+experiment=quickstart"]).tokenizer.vocabulary_size == 2048
    assert compose(["+experiment=large_database"]).tokenizer.vocabulary_size == 8192
    assert compose(["+experiment=quickstart", "tokenizer.vocabulary_size=300"]).tokenizer.vocabulary_size == 300


BASE = {"model_type": "llama", "num_hidden_layers": 7, "hidden_size": 16, "num_attention_heads": 2}
CONTRADICTIONS = {
    "init=scratch": r"init=scratch contradicts backbone=hf",
    "init.checkpoint=x": r"init\.checkpoint names a baseline of the paper's decoder; with backbone=hf, name the base",
    "model.document_masks=true": r"model\.document_masks=true is impossible with backbone=hf",
    "compute.compile=true": r"compute\.compile=true is impossible with backbone=hf",
    "model.tied_readout=false": r"model\.tied_readout=false is impossible with backbone=hf",
    "tokenizer=byte_bpe": r"needs its base's own tokenizer.*set tokenizer=backbone",
    "backbone.model=null": r"backbone\.model has no value; give it one: backbone\.model=",
    "size.cca_layers=[8]": r"size\.cca_layers counts layers from 1 to size\.layers \(7\), so 8 is not one",
}


@pytest.mark.parametrize("override", CONTRADICTIONS)
def test_what_contradicts_the_base_of_a_retrofit_is_refused(override: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    with pytest.raises(ConfigurationError, match=CONTRADICTIONS[override]):
        model_size(compose(["backbone=hf", f"backbone.model={tmp_path}", override]))


def test_a_retrofit_takes_its_decoder_from_the_base_and_its_encoder_from_the_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE | {"num_hidden_layers": 4}))
    named = ["backbone=hf", f"backbone.model={tmp_path}", "size=172m"]
    size = compose(named).size
    assert (size.width, size.heads, size.head_size, size.layers, size.cca_layers) == (16, 2, 8, 4, [4])
    assert (size.encoder_width, size.encoder_layers) == (896, 2)
    assert compose([*named, "cca=all"]).size.cca_layers == [1, 2, 3, 4]
    assert compose([*named, "size.cca_layers=[2,3]"]).size.cca_layers == [2, 3]


def test_a_retrofit_of_an_unknown_architecture_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"backbone\.model=.* holds no model: there is no config\.json in it"):
        compose(["backbone=hf", f"backbone.model={tmp_path}"])
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigurationError, match=r"architecture 'bert' cannot be RETROfitted; these can: .*llama"):
        compose(["backbone=hf", f"backbone.model={other}"])
