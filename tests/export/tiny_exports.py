"""Small trained models, exported once for all tests of this folder, and neighbors for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bases import retrofitted, tiny_base
from tokenizers_of_all_kinds import byte_level

from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.export.folder import write_export
from retro_lab.generation.decoder import Decoder, Writing
from retro_lab.generation.retrieved import Found, Retrieve
from retro_lab.generation.sampling import Sampling
from retro_lab.model.config import ModelConfig, Positions, SizeConfig
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.sharding import whole_weights
from retro_lab.retrieval.config import Value
from retro_lab.runs.base_model import BaseModel
from retro_lab.runs.trained_model import BackboneSettings, ModelSettings, TrainedModel, open_model, save_model

M, K, R = 4, 2, 8
SIZE = SizeConfig(
    name="small",
    width=16,
    ffw_width=32,
    heads=2,
    head_size=8,
    layers=3,
    cca_layers=[2, 3],
    encoder_width=16,
    encoder_ffw_width=32,
    encoder_heads=2,
    encoder_head_size=8,
    encoder_layers=1,
)
CHOICES: dict[str, dict[str, object]] = {
    "paper": {},
    "rotary": {"positions": Positions.rotary, "tied_readout": False},
    "masks": {"document_masks": True, "shared_embeddings": True},
    "baseline": {},
}
RUN = {"name": "tiny", "model": "retro", "identity": "0123"}


@dataclass(frozen=True)
class Exported:
    """A trained model as `open_model` opens it, and the folder of its export."""

    trained: TrainedModel
    folder: Path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Return a function that gives an export by its name in `CHOICES`."""
    root, made = tmp_path_factory.mktemp("exports"), dict[str, Exported]()
    tokenizer = DocumentTokenizer.adapt(byte_level(), "<|endoftext|>")

    def export(name: str) -> Exported:
        if name not in made:
            k = 0 if name == "baseline" else K
            settings = ModelSettings(
                size=SIZE if k else replace(SIZE, cca_layers=[]),
                model=ModelConfig(**({"chunk_length": M, "init_std": 0.3} | CHOICES[name])),  # type: ignore[arg-type]
                vocabulary_size=tokenizer.vocabulary_size,
                k=k,
                value=Value.neighbor_and_continuation,
                sequence_length=64,
            )
            torch.manual_seed(0)
            save_model(root / name / "run", whole_weights(settings.build()), settings, tokenizer)
            trained = open_model(root / name / "run")
            write_export(root / name / "exported", trained, RUN, "# A card", shard_bytes=5_000_000_000)
            made[name] = Exported(trained, root / name / "exported")
        return made[name]

    return export


@pytest.fixture(scope="session")
def exported_retrofit(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Return a function that gives an export of a RETROfit by the family of its base; in half of them it is saved."""
    root, made = tmp_path_factory.mktemp("retrofits"), dict[str, Exported]()
    tokenizer = DocumentTokenizer.adapt(byte_level(), "<|endoftext|>")

    def export(family: str) -> Exported:
        if family not in made:
            place = root / family
            decoder = tiny_base(family, vocab_size=tokenizer.vocabulary_size + 4)
            decoder.save_pretrained(place / "base")
            base = BaseModel.of(str(place / "base"))
            model = retrofitted(base.load(), opened=True)
            settings = ModelSettings(
                size=model.size,
                model=ModelConfig(chunk_length=M, init_std=0.3),
                vocabulary_size=base.vocabulary_size,
                k=K,
                value=Value.neighbor_and_continuation,
                sequence_length=32,
                backbone=BackboneSettings(
                    model=base.name,
                    commit=None,
                    sha256=base.sha256,
                    frozen=True,
                    saved=len(made) % 2 == 1,
                    matrices=base.matrices,
                ),
            )
            state, saved = model.state_dict(), settings.saved_names(model)
            weights = {name: state[name] for name in saved}
            save_model(place / "run", weights, settings, tokenizer, decoder.config)
            trained = open_model(place / "run")
            write_export(place / "exported", trained, RUN, "# A card", shard_bytes=5_000_000_000)
            made[family] = Exported(trained, place / "exported")
        return made[family]

    return export


def neighbors_of(chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbors that depend on the chunk alone; some are shorter, and some are missing."""
    found = np.zeros((len(chunks), K, R), np.int64), np.zeros((len(chunks), K), np.int64)
    for row, chunk in enumerate(chunks):
        assert len(chunk) == M
        draw = np.random.default_rng(np.asarray(chunk))
        found[0][row], found[1][row] = draw.integers(0, 300, (K, R)), draw.choice([0, R // 2, R], K)
    return found


def found_for(chunks: Sequence[np.ndarray]) -> list[Found]:
    """`neighbors_of` as retro_lab's own loop takes it."""
    tokens, lengths = neighbors_of(np.stack(chunks))
    return [Found(np.zeros(K), np.zeros(K), *one) for one in zip(tokens, lengths, strict=True)]


class _Endless(Writing):
    """A text of as many tokens as were asked for."""

    most: int

    def ends(self) -> bool:
        return len(self.tokens) == self.most


def our_own(
    model: LanguageModel, prompts: Sequence[torch.Tensor], count: int, retrieve: Retrieve | None, length: int = 64
) -> list[list[int]]:
    """What retro_lab's own loop writes, without anything that ends a text."""
    texts = []
    for number, prompt in enumerate(prompts):
        text = _Endless(prompt.tolist(), Sampling().draws(number))
        text.most = len(prompt) + count
        texts.append(text)
    Decoder(model, Sampling(), retrieve, length=length).write(texts)
    return [text.tokens for text in texts]
