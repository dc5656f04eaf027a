"""Small trained models, exported once for all tests of this folder, and neighbors for them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers_of_all_kinds import byte_level

from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.export.folder import write_export
from retro_lab.model.config import ModelConfig, Positions, SizeConfig
from retro_lab.model.sharding import whole_weights
from retro_lab.retrieval.config import Value
from retro_lab.runs.trained_model import ModelSettings, TrainedModel, open_model, save_model

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


def neighbors_of(chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbors that depend on the chunk alone; some are shorter, and some are missing."""
    found = np.zeros((len(chunks), K, R), np.int64), np.zeros((len(chunks), K), np.int64)
    for row, chunk in enumerate(chunks):
        assert len(chunk) == M
        draw = np.random.default_rng(np.asarray(chunk))
        found[0][row], found[1][row] = draw.integers(0, 300, (K, R)), draw.choice([0, R // 2, R], K)
    return found
