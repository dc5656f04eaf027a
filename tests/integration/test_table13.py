"""Every row of the ablation table (Borgeaud et al. 2022, Table 13), and every option beyond it, is one override.

Each row composes, reads its own data, builds its model and takes a real training step. What a row must change in the
model is asserted from the formulas of its parameter counts; what it must change in the data, from the batch.
"""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate

from retro_lab.config.compose import compose
from retro_lab.errors import ConfigurationError
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks import compare, train
from retro_lab.tasks.assemble import model_settings, sequences, windows
from retro_lab.tasks.build import Inputs
from retro_lab.training.data import RetroDataModule
from retro_lab.training.module import RetroModule
from retro_lab.training.schedule import WarmupCosine

M, V = 8, 300
# Of the decoder: width, heads x head size. Of the encoder: the same, and its inner width.
D, DI, E, EI, F = 16, 24, 16, 16, 32
SMALL = [
    "+experiment=paper_172m", "evaluation.k=[0]",  # the model of Table 13, in its depth; narrow
    f"size.width={D}", "size.heads=3", "size.head_size=8", "size.ffw_width=32",
    f"size.encoder_width={E}", "size.encoder_heads=2", "size.encoder_head_size=8", f"size.encoder_ffw_width={F}",
    f"model.chunk_length={M}", f"tokenizer.vocabulary_size={V}",
    "data.sequence_length=32", "data.batch_size=4", "evaluation.stride=16",
    "schedule.warmup_steps=0", "optimizer.lr=1e-3",
    "corpus=local", "corpus.text_field=text", "corpus.validation_fraction=0.1", "corpus.test_fraction=0.1",
    "retrieval.stored=4",
]  # fmt: skip

CCA_POSITIONS = D * DI + 2 * DI  # R, u and v
CCA = 2 * D * DI + 2 * E * DI + CCA_POSITIONS + D  # query, output; key, value; the norm before
ENCODER_LAYER = (5 * E * EI + 2 * EI + E) + (2 * E * F + E)  # attention with R, u, v; feed-forward; their norms
ENCODER_CA = 3 * E * EI + 2 * D * EI + 2 * EI + E + D  # query, output, R; key, value; u, v; norms of both streams


@dataclass
class Row:
    """What one override must change against the default."""

    override: str | None
    changes: dict[str, int] = field(default_factory=dict)  # of the parameters, by part
    k: int = 2
    r: int = 2 * M
    cca_layers: list[int] = field(default_factory=lambda: [6, 9, 12])


def cca_row(override: str, layers: list[int]) -> Row:
    """A row of the group "CA position"."""
    return Row(override, {"chunked_cross_attention": (len(layers) - 3) * CCA}, cca_layers=layers)


ROWS = {
    "default": Row(None),
    "no-query-conditioning": Row("model.query_conditioning=false", {"encoder": -ENCODER_CA}),
    "no-ca-positions": Row("model.cca_positions=false", {"chunked_cross_attention": -3 * CCA_POSITIONS}),
    "shared-embeddings": Row("model.shared_embeddings=true", {"embeddings": -V * E}),
    "6-layer-encoder": Row("size.encoder_layers=6", {"encoder": 4 * ENCODER_LAYER}),
    "neighbors-n-only": Row("retrieval.value=neighbor", r=M),
    "continuations-f-only": Row("retrieval.value=continuation", r=M),
    "no-retrieval": Row(
        "retrieval.k=0",
        {
            "chunked_cross_attention": -3 * CCA,
            "encoder": -(2 * ENCODER_LAYER + ENCODER_CA + E),
            "embeddings": -V * E,
        },
        k=0,
    ),
    "1-training-neighbor": Row("retrieval.k=1", k=1),
    "4-training-neighbors": Row("retrieval.k=4", k=4),
    "ca-first-layer": cca_row("cca=first", [1]),
    "ca-mid-layer": cca_row("cca=middle", [6]),
    "ca-top-layer": cca_row("cca=top", [12]),
    "ca-all-layers": cca_row("cca=all", list(range(1, 13))),
    "ca-every-3-from-1": cca_row("cca=every_3_from_1", [1, 4, 7, 10]),
    "ca-every-3-from-6": cca_row("cca=every_3_from_6", [6, 9, 12]),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_bert):
    """Overrides of a small model on a corpus of its own."""
    folder = tmp_path_factory.mktemp("table13")
    rows = [{"text": f"{number} " + "the frozen encoder finds neighbors of chunks " * 8} for number in range(20)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {
        "corpus.path": folder / "corpus.jsonl",
        "embedder.model": tiny_bert,
        "paths.artifacts": folder / "artifacts",
    }
    return [*SMALL, *(f"{key}={value}" for key, value in given.items())]


@pytest.fixture(scope="module")
def default_counts(small):
    """Parameters of the row "RETRO", by part."""
    config = compose(small)
    return build_model(config, Inputs(config)).parameter_counts()


def build_model(config, inputs):
    """Create the model of a configuration."""
    return model_settings(config, inputs.corpus.stores["train"].tokenizer).build()


@pytest.mark.parametrize("name", ROWS)
def test_table13_row_is_one_override_that_trains(name, small, default_counts):
    row = ROWS[name]
    config = compose([*small, *([row.override] if row.override else [])])
    assert config.size.cca_layers == row.cca_layers
    k = config.retrieval.k
    assert k == row.k

    inputs = Inputs(config)
    torch.manual_seed(0)
    model = build_model(config, inputs)
    counts = model.parameter_counts()
    changes = {part: counts[part] - default_counts[part] for part in counts if part not in ("total", "non_embedding")}
    assert {part: change for part, change in changes.items() if change} == {p: c for p, c in row.changes.items() if c}

    if k:
        training = sequences(config, inputs.corpus.stores["train"], inputs.database)
        batch = training.read(np.arange(4), k)
        assert batch["neighbors"].shape == (4, 4, k, row.r)
        assert (batch["neighbor_lengths"] > 0).any()
    assert_trains(config, inputs, model)


def assert_trains(config, inputs, model):
    """Take one real training step, and score held-out text after it."""
    k, stores = config.retrieval.k, inputs.corpus.stores
    database = inputs.database if k else None
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    module = RetroModule(model, k, [k], instantiate(config.optimizer), WarmupCosine(10, 0, 1, 1), seed=0)
    data = RetroDataModule(
        sequences(config, stores["train"], database),
        windows(config, stores["validation"], database, [k], 200),
        batch_size=config.data.batch_size,
        k=k,
        seed=0,
        workers=0,
    )
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        val_check_interval=1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    measured = trainer.callback_metrics
    assert measured["train/loss"].isfinite()
    assert measured[f"validation/bits_per_byte/k={k}"].isfinite()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []


@pytest.mark.parametrize(
    "override", ["model.positions=rotary", "model.document_masks=true", "model.tied_readout=false"]
)
def test_an_option_beyond_the_paper_is_one_override_that_trains(override, small):
    config = compose([*small, override])
    inputs = Inputs(config)
    assert_trains(config, inputs, build_model(config, inputs))


@pytest.mark.parametrize(("override", "layers"), [("first", [1]), ("middle", [2]), ("top", [4]), ("all", [1, 2, 3, 4]),
                                                  ("every_3_from_1", [1, 4]), ("of_size", [2, 3])])  # fmt: skip
def test_table13_positions_of_cca_fit_any_depth(override, layers):
    assert compose(["size=tiny", "size.layers=4", f"cca={override}"]).size.cca_layers == layers


def test_table13_middle_of_one_layer_is_that_layer():
    assert compose(["size.layers=1", "cca=middle"]).size.cca_layers == [1]


def test_table13_a_decoder_without_the_first_layer_named_is_refused():
    """No layer at all would be the baseline, without a word."""
    with pytest.raises(ConfigurationError, match=r"from layer 6 on needs as many layers; size\.layers=3\."):
        compose(["size=tiny", "cca=every_3_from_6"])


@pytest.mark.parametrize("task", [train, compare])
def test_table13_a_layer_beyond_the_last_is_refused_before_anything_is_built(task, small, tmp_path):
    config = compose([*small, "size.cca_layers=[6,13]", f"paths.artifacts={tmp_path}"])
    message = r"size\.cca_layers counts layers from 1 to size\.layers \(12\), so 13 is not one"
    with pytest.raises(ConfigurationError, match=message):
        task.run(config, RunFolder(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_table13_layers_by_number_win_over_layers_by_name():
    assert compose(["cca=top", "size.cca_layers=[1,3]"]).size.cca_layers == [1, 3]
