"""Every file of the groups of presets trains, made small: a new one is tested by being there."""

import csv
import math
import shutil
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from in_process import CORPUS, REPOSITORY, SMALL, furnish, run, small
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from retro_lab.runs.records import RunRecord, load_run

MIXED = ("trainer", "compute", "logger", "index", "callbacks", "cca")
"""Groups whose options have nothing to do with each other: one run tries one of each."""
ALONE = ("debug", "init")
ON_THIS_MACHINE = {
    "trainer=fsdp": ["trainer.devices=1"],
    "trainer=multi_node": ["trainer.devices=1", "trainer.num_nodes=1"],
    "trainer=ddp": ["trainer.devices=1"],  # test_ranks.py starts two processes
    # 1,024 lists want as many chunks.
    "index=ivf_pq": [
        "corpus.max_bytes=null",
        "corpus.validation_fraction=0.05",
        "corpus.test_fraction=0.05",
        "model.chunk_length=8",
    ],
    "init=retrofit": ["task=compare", "data.batch_size=4"],  # its baseline is trained first
}
WIDTH = 48
"""Of the embeddings: the product quantizer of `index=ivf_pq` divides it, as it does those of the shipped embedders."""
METRICS = Path("retro/metrics/version_0/metrics.csv")


def options(group: str) -> list[str]:
    """Return the options of a group, as overrides."""
    return [f"{group}={path.stem}" for path in sorted((REPOSITORY / "conf" / group).glob("*.yaml"))]


MIXTURES = [
    [option or options(group)[0] for group, option in zip(MIXED, mixture, strict=True)]
    for mixture in zip_longest(*map(options, MIXED))
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A folder with a corpus of the user's own; all presets share its artifacts."""
    embedder = tmp_path_factory.mktemp("embedder")
    shutil.copytree(tiny_bert, embedder, dirs_exist_ok=True)
    torch.manual_seed(0)
    BertModel(BertConfig.from_pretrained(tiny_bert, hidden_size=WIDTH)).save_pretrained(embedder)
    return furnish(tmp_path_factory.mktemp("presets"), embedder)


@pytest.fixture
def train(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
):
    """Return a function that trains under a name with overrides and returns the run and the configuration noted."""

    def trained(name: str, *overrides: str, own: set[str] = frozenset()) -> tuple[RunRecord, DictConfig]:
        """Train; `own` are the settings that are left as the presets have them."""
        monkeypatch.chdir(workplace)
        extra = [text for override in overrides for text in ON_THIS_MACHINE.get(override, [])]
        arguments = ["+experiment=quickstart", "corpus=local", f"corpus.path={CORPUS}", "trainer.accelerator=cpu"]
        arguments += [*overrides, *extra, "evaluation.stride=64", f"name={name}"]
        arguments += [] if "task=compare" in arguments else ["task=train"]
        kept = [f"{key}=" for key in SMALL if key in own]
        assert run([*arguments, *small([*arguments, *kept])], monkeypatch) == 0, capfd.readouterr().err
        outcome, noted = load_run(Path("outputs", name)), OmegaConf.load(Path("outputs", name, "config.yaml"))
        config = OmegaConf.create(OmegaConf.to_container(noted.settings))
        said = " ".join(capfd.readouterr().err.split())
        step = config.data.sequence_length * config.data.batch_size
        assert [model.model for model in outcome.models] == [*["baseline"] * (config.task.name == "compare"), "retro"]
        for model in outcome.models:
            assert model.tokens == round(config.schedule.tokens / step) * step
            assert f"{model.tokens:,} in all" in said
            assert model.evaluations
            for entry in model.evaluations:
                assert 0 < entry.bits_per_byte < 20
                assert math.isfinite(entry.perplexity)
                assert entry.documents == model.corpus.test_documents
        return outcome, config

    return trained


@pytest.mark.parametrize("mixture", MIXTURES, ids=",".join)
def test_shipped_presets_train(train, mixture: list[str]) -> None:
    name = "-".join(option.replace("=", "_") for option in mixture)
    outcome, config = train(name, *mixture, "size.layers=6", "trainer.log_every_n_steps=1", own={"size.cca_layers"})
    assert set(config.size.cca_layers) <= set(range(1, 7))
    logged = [value for row in _metrics(outcome.folder) if (value := row["train/loss"])]
    assert bool(logged) == ("csv" in config.logger)
    assert all(math.isfinite(float(value)) for value in logged)
    assert any(outcome.folder.glob("retro/wandb/offline-run-*")) == ("wandb" in config.logger)
    if "index=ivf_pq" in mixture:
        assert outcome.retro.database.index == "IVF1024,PQ48x4fs,Refine(SQ8)"
    if "trainer=gpu" in mixture:
        assert config.trainer.precision == "bf16-mixed"


@pytest.mark.parametrize("preset", [option for group in ALONE for option in options(group)])
def test_shipped_presets_that_change_the_training_train(train, preset: str) -> None:
    group, _, option = preset.partition("=")
    file = OmegaConf.load(REPOSITORY / "conf" / group / f"{option}.yaml")
    own = set(_keys(file)) if group == "debug" else set()
    outcome, config = train(preset.replace("=", "-"), preset, "logger=csv", own=own)
    assert {key: OmegaConf.select(config, key) for key in own if key != "schedule.tokens"} == {
        key: OmegaConf.select(file, key) for key in own if key != "schedule.tokens"
    }
    if preset == "debug=profile":
        assert "run_training_batch" in (outcome.folder / "retro/metrics/version_0/fit-profile.txt").read_text()
    if preset == "debug=overfit":
        losses = [float(row["train/loss"]) for row in _metrics(outcome.folder) if row["train/loss"]]
        assert len(losses) == 200
        assert losses[-1] < losses[0] / 3


def test_checkpointed_activations_train_to_the_same_weights(train) -> None:
    records = [
        train(f"activations-{value}", "logger=none", f"compute.checkpoint_activations={value}")[0]
        for value in (False, True)
    ]
    weights = [
        torch.load(record.folder / "retro/checkpoints/last.ckpt", weights_only=True)["state_dict"] for record in records
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_retrofit_from_another_baseline_is_not_taken_for_the_same(train, workplace: Path) -> None:
    """Wherever the baseline's path comes from, its weights are part of the run's identity."""
    train("fitted", "init=retrofit", "logger=none")
    own = workplace / "outputs/fitted/baseline/model.safetensors"
    given = Path(shutil.copy(own.parent / "checkpoints/last.ckpt", workplace / "baseline.ckpt"))
    train("fitted-given", "init=retrofit", "logger=none", f"init.checkpoint={given}")
    weights = load_file(own)
    next(iter(weights.values())).add_(1)
    for path, name, extra in ((own, "fitted", []), (given, "fitted-given", [f"init.checkpoint={given}"])):
        save_file(weights, own) if path == own else torch.save({"state_dict": weights}, path)
        with pytest.raises(AssertionError, match=r"other settings \(init\.checkpoint: "):
            train(name, "init=retrofit", "logger=none", *extra)


def _metrics(folder: Path) -> list[dict[str, str]]:
    path = folder / METRICS
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.is_file() else []


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    """Return the keys of the leaves."""
    return [
        leaf
        for name in node
        for leaf in (
            _keys(node._get_node(name), f"{prefix}{name}.")
            if isinstance(node._get_node(name), DictConfig)
            else [f"{prefix}{name}"]
        )
    ]
