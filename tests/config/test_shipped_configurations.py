"""Every option, experiment and sweep that is shipped composes."""

import pytest
from hydra.utils import instantiate

from retro_lab.config import catalog
from retro_lab.config.compose import compose
from retro_lab.tasks.assemble import model_size
from retro_lab.tasks.config import RunConfig

GIVEN = {
    "answer": ["task.start=outputs/run", "task.train=train.json", "task.validation=dev.json"],
    "local": ["corpus.path=text.jsonl"],
    "curation_corpus": ["corpus.dataset=curation.csv"],
    "wikipedia_september_2021": ["corpus.path=enwiki.xml.bz2"],
    "pretrained": ["tokenizer.name=gpt2"],
    "every_3_from_6": ["size=172m"],
}
"""What some options leave to the user, or need."""
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
def test_every_option_composes_into_typed_settings(group: str, option: str) -> None:
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


@pytest.mark.parametrize("experiment", catalog.options("experiment"))
@pytest.mark.parametrize("option", catalog.options("tokenizer"))
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
