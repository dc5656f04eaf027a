"""A folder belongs to what was trained in it, on whatever hardware, and to nothing else."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from retro_lab.config.compose import compose
from retro_lab.config.session import session
from retro_lab.errors import ArtifactError, ConfigurationError
from retro_lab.runs.identity import IDENTITY_NAME, check_identity, check_scored, identity, write_identity
from retro_lab.tasks.assemble import without_retrieval
from retro_lab.training.precision import checked_precision


@pytest.mark.parametrize("content", [b"", b'{"seed": 1', b"[]", b"null", b"\xff\xfe\x00"])
def test_a_damaged_identity_is_told_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / IDENTITY_NAME
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        check_identity(tmp_path, {"seed": 1})
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} cannot be read (")
    assert sentence.endswith("or give this run a name of its own with name=NAME.")
    assert "\n" not in sentence


def test_only_what_is_wanted_is_compared(tmp_path: Path) -> None:
    check_identity(tmp_path, {"seed": 2})  # nothing there yet
    (tmp_path / IDENTITY_NAME).write_text('{"seed": 1, "size": {"width": 16}}', encoding="utf-8")
    check_identity(tmp_path, {"size": {"width": 16}})
    with pytest.raises(ConfigurationError, match=r"other settings \(seed: 1 -> 2\); give this run a name"):
        check_identity(tmp_path, {"seed": 2})


QUICKSTART = "+experiment=quickstart"
HARDWARE = [
    ["trainer.devices=2"],
    ["trainer.num_nodes=4"],
    ["trainer.strategy=ddp"],
    ["data.micro_batch_size=2"],
    ["trainer=fsdp", "trainer.precision=32-true"],
    ["trainer=ddp", "trainer.precision=32-true"],
    ["trainer=gpu", "trainer.precision=32"],
    ["compute.compile=true"],
    ["data.workers=2"],
    ["logger=none"],
    ["~callbacks.progress"],
    ["evaluation.k=[0,1]", "evaluation.stride=32"],
    ["evaluation.datasets=[test,wikitext103]"],
    ["+corpus@corpora.mine=local", "corpora.mine.path=x"],
    ["task=evaluate"],
]
DECIDING = [
    ["seed=1"],
    ["size=172m"],
    ["data.batch_size=8"],
    ["data.neighbor_dropout=0.1"],
    ["optimizer.lr=1e-4"],
    ["init=retrofit", "init.checkpoint=x.ckpt"],
    ["model.dropout=0.1"],
    ["retrieval.k=4"],
    ["retrieval.value=neighbor"],
    ["trainer=gpu"],
    ["trainer=ddp"],
    ["trainer.precision=bf16-mixed"],
]


def folder(overrides: list[str]) -> str:
    with session() as assemble:
        return str(assemble([QUICKSTART, *overrides]).hydra.run.dir)


def decided(overrides: list[str]) -> dict[str, Any]:
    config = compose([QUICKSTART, *overrides])
    precision = checked_precision(config.trainer["precision"], "gpu")
    return identity(asdict(config), precision, {"corpus": "abc", "database": "def"})


@pytest.mark.parametrize("overrides", HARDWARE, ids=" ".join)
def test_other_hardware_goes_on_in_the_same_folder(overrides: list[str]) -> None:
    assert folder(overrides) == folder([])
    assert decided(overrides) == decided([])


@pytest.mark.parametrize("overrides", DECIDING, ids=" ".join)
def test_what_decides_the_model_moves_the_folder_and_is_in_the_identity(overrides: list[str]) -> None:
    assert folder(overrides) != folder([])
    assert decided(overrides) != decided([])


def test_trainers_of_one_precision_share_a_folder() -> None:
    folders = {folder(overrides) for overrides in (["trainer=gpu"], ["trainer=ddp"], ["trainer.precision=bf16-mixed"])}
    assert folders == {"outputs/quickstart,trainer.precision=bf16-mixed"}


def test_a_baseline_is_the_same_whatever_its_twin_retrieves() -> None:
    config = without_retrieval(compose([QUICKSTART, "retrieval.k=4", "data.neighbor_dropout=0.1"]))
    alone = without_retrieval(compose([QUICKSTART, "retrieval.k=0"]))
    assert identity(asdict(config), "32-true", {"corpus": "abc"}) == identity(
        asdict(alone), "32-true", {"corpus": "abc"}
    )


def test_neighbors_may_be_others_where_a_model_is_scored(tmp_path: Path) -> None:
    write_identity(tmp_path, decided([]))
    check_scored(tmp_path, decided([]) | {"database": "another"})
    with pytest.raises(ConfigurationError, match=r"corpus: 'abc' -> 'another'.*; score it with the overrides it was"):
        check_scored(tmp_path, decided([]) | {"corpus": "another"})
    with pytest.raises(ConfigurationError, match="database: 'def' -> 'another'"):
        check_identity(tmp_path, decided([]) | {"database": "another"})
