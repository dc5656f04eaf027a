"""Trainings on several ranks: DDP and FSDP take the steps of one process, and continue each other's checkpoints.

The ranks are forked by `ranks_that_train.py`, all trainings of the same number of ranks by the same processes.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_that_train import SIZE, VOCABULARY, choices, tiny_llama

from retro_lab.cost.memory import sharded_state
from retro_lab.cost.parameters import Parameters
from retro_lab.errors import ArtifactError
from retro_lab.training.checkpoints import CHECKPOINT, DAMAGED_NAME, PREVIOUS_NAME, read_checkpoint
from retro_lab.training.precision import PRECISIONS

SCRIPT = Path(__file__).with_name("ranks_that_train.py")


def run(folder: Path, *worlds: str) -> dict[str, Any]:
    """Run the trainings of some worlds and return what rank 0 found in each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, SCRIPT, folder, *worlds], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: found for world in worlds for name, found in torch.load(folder / f"{world}.0.pt").items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Any]:
    return run(folder, "on_one", "on_two", "on_one_again", "on_four", "damaged_on_two")


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Compare the weights of two trainings, and the losses and scores that both have.

    AdamW turns rounding in the smallest gradients into a share of the learning rate, here 3e-3.
    """
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=0, atol=tolerance, msg=name)
    steps = min(len(found["losses"]), len(expected["losses"]))
    assert found["losses"][-steps:] == pytest.approx(expected["losses"][-steps:], abs=tolerance)
    assert [(p["tokens"], p["k"]) for p in found["curve"]] == [(p["tokens"], p["k"]) for p in expected["curve"]]
    scores = ([point["bits_per_byte"] for point in one["curve"]] for one in (found, expected))
    assert next(scores) == pytest.approx(next(scores), abs=tolerance)


@pytest.mark.parametrize("name", ["fsdp on one", "ddp", "fsdp", "accumulated fsdp", "fsdp on four"])
def test_ddp_and_fsdp_take_the_steps_of_one_process(trained: dict[str, Any], name: str) -> None:
    """From the same weights, at the same global batch: clipped, decayed, accumulated, checkpointed, cut unevenly."""
    assert len(trained["one"]["losses"]) == 6
    assert [point["tokens"] for point in trained["one"]["curve"]] == [3, 3, 6, 6]
    assert trained[name]["groups"] == trained["one"]["groups"]
    assert_same(trained[name], trained["one"])


@pytest.mark.parametrize("name", ["untied fsdp", "retrofit fsdp", "retrofit from shards"])
def test_fsdp_trains_every_kind_of_model(trained: dict[str, Any], name: str) -> None:
    expected = trained["untied one" if name.startswith("untied") else "retrofit one"]
    assert_same(trained[name], expected)
    if name.startswith("retrofit"):
        for weight, value in trained["baseline"]["weights"].items():
            torch.testing.assert_close(
                trained[name]["weights"][weight], value, rtol=0, atol=0 if name == "retrofit fsdp" else 1e-4
            )


def test_a_sharded_retrofit_resumes_exactly_from_parts_of_new_weights_alone(
    folder: Path, trained: dict[str, Any]
) -> None:
    saved = read_checkpoint(folder / "retrofit resumed" / CHECKPOINT)["state_dict"]
    weights = trained["retrofit fsdp"]["weights"]
    assert {name.removeprefix("model.") for name in saved} == weights.keys() - trained["baseline"]["weights"].keys()
    assert all(torch.equal(trained["retrofit resumed"]["weights"][name], value) for name, value in weights.items())


@pytest.mark.parametrize("kind", ["frozen", "free"])
def test_ddp_trains_the_retrofit_of_a_base(trained: dict[str, Any], kind: str) -> None:
    assert_same(trained[f"{kind} base ddp"], trained[f"{kind} base one"])


@pytest.mark.parametrize("kind", ["frozen", "free"])
def test_fsdp_trains_the_retrofit_of_a_base(folder: Path, trained: dict[str, Any], kind: str) -> None:
    """A frozen base with checkpointing and a trained one, each layer of which is gathered by itself."""
    found, expected = trained[f"{kind} base fsdp"], trained[f"{kind} base one"]
    assert_same(found, expected)
    moved = {name for name, value in expected["weights"].items() if not torch.equal(value, start_of_base(name, value))}
    assert any(name.startswith("base.") for name in moved) == (kind == "free")
    held = [torch.load(folder / f"on_two.{rank}.pt")[f"{kind} base fsdp"]["held"]["weights"] for rank in range(2)]
    assert sum(held) == expected["held"]["weights"]
    assert max(held) < 0.6 * sum(held)


def start_of_base(name: str, otherwise: torch.Tensor) -> torch.Tensor:
    """Return a weight of the base as it was before training."""
    return tiny_llama().state_dict().get(name.removeprefix("base."), otherwise)


def test_fsdp_in_bfloat16_is_ddp_up_to_the_gains_of_norms(trained: dict[str, Any]) -> None:
    found, expected = trained["bf16 fsdp"], trained["bf16 one"]
    assert found["losses"] == pytest.approx(expected["losses"], abs=2e-3)
    for name, weight in expected["weights"].items():
        assert found["weights"][name].dtype == torch.float32
        assert (found["weights"][name] - weight).abs().mean() < 2e-3, name  # of four steps of 3e-3


@pytest.mark.parametrize("ranks", [2, 4])
def test_fsdp_divides_weights_gradients_and_moments(folder: Path, trained: dict[str, Any], ranks: int) -> None:
    world, name = ("on_two", "fsdp") if ranks == 2 else ("on_four", "fsdp on four")
    held = [torch.load(folder / f"{world}.{rank}.pt")[name]["held"] for rank in range(ranks)]
    whole = trained["one"]["held"]
    for kind, size in whole.items():
        assert sum(part[kind] for part in held) == size
        assert max(part[kind] for part in held) < 1.15 * size / ranks


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_skip_a_step_that_is_not_finite_on_one(folder: Path, trained: dict[str, Any], strategy: str) -> None:
    """Its loss at step 1, only its gradient at step 3; a part of the weights on each rank stays what it was."""
    for rank in range(2):
        found = torch.load(folder / f"on_two.{rank}.pt")[f"poisoned {strategy}"]
        assert found["moved"] == [True, False, True, False, True, True]
        assert found["skipped"] == 2
    for name, weight in trained["poisoned ddp"]["weights"].items():
        torch.testing.assert_close(trained[f"poisoned {strategy}"]["weights"][name], weight, rtol=0, atol=1e-4)
        assert weight.isfinite().all()


@pytest.mark.parametrize("name", ["fsdp", "fsdp on four", "bf16 fsdp", "untied fsdp", "retrofit fsdp"])
def test_each_device_holds_what_was_estimated(folder: Path, trained: dict[str, Any], name: str) -> None:
    """To the byte: of the device that holds most, and of what is gathered to compute."""
    ranks, world = (4, "on_four") if name == "fsdp on four" else (2, "on_two")
    found = [torch.load(folder / f"{world}.{rank}.pt")[name] for rank in range(ranks)]
    parameters = Parameters.of(SIZE, choices(tied="untied" not in name, shared="untied" in name), VOCABULARY)
    precision = PRECISIONS["bf16-mixed" if "bf16" in name else "32-true"]
    expected = sharded_state(parameters, precision, frozen="retrofit" in name, devices=ranks)
    held = {kind: max(one["held"][kind] for one in found) for kind in found[0]["held"]}
    assert held == {"weights": expected.weights, "gradients": expected.gradients, "moments": expected.moments}
    for one in found:
        assert one["gathered"] == {
            "block": parameters.largest_block * precision.product,
            "outside": parameters.outside_blocks() * precision.stream,
        }


@pytest.mark.parametrize(
    "name",
    [f"{first} to {then}" for first in ("ddp", "fsdp") for then in ("fsdp", "1", "4")]
    + ["fsdp to ddp", "fsdp to 1 fsdp", "fsdp to 4 ddp"],
)  # fmt: skip
def test_resume_continues_under_another_strategy_and_on_another_number_of_ranks(
    trained: dict[str, Any], name: str
) -> None:
    assert len(trained[name]["losses"]) == 3, "it resumed, rather than beginning again"
    assert_same(trained[name], trained["one"])


def test_a_sharded_checkpoint_reads_as_a_single_file(folder: Path, trained: dict[str, Any]) -> None:
    sharded, single = (read_checkpoint(folder / name / CHECKPOINT) for name in ("fsdp", "ddp"))
    assert (folder / "fsdp" / CHECKPOINT).is_dir()
    assert sharded.keys() == single.keys()
    assert sharded["state_dict"].keys() == single["state_dict"].keys()
    for name, weight in single["state_dict"].items():
        torch.testing.assert_close(sharded["state_dict"][name], weight, rtol=0, atol=1e-4)
    one, other = (state["optimizer_states"][0] for state in (sharded, single))
    assert [group["params"] for group in one["param_groups"]] == [group["params"] for group in other["param_groups"]]
    for number, entries in other["state"].items():
        for key, value in entries.items():
            torch.testing.assert_close(one["state"][number][key], value, rtol=0, atol=1e-4)


def test_a_damaged_sharded_checkpoint_falls_back_and_says_so(folder: Path, trained: dict[str, Any]) -> None:
    assert len(trained["damaged"]["losses"]) == 4, "it resumed at step 2"
    assert_same(trained["damaged"], trained["one"])
    said = " ".join((folder / "damaged_on_two.0.log").read_text().split())
    assert PREVIOUS_NAME in said
    assert "last.ckpt is not a whole checkpoint (its file __1_0.distcp has changed)" in said
    assert (folder / "damaged" / "checkpoints" / DAMAGED_NAME).is_dir()
    assert "The previous one cannot be read either" in trained["refused"]
    for rank in range(2):
        assert torch.load(folder / f"damaged_on_two.{rank}.pt")["refused"] == trained["refused"]


def test_the_last_two_sharded_checkpoints_are_kept(folder: Path, trained: dict[str, Any]) -> None:
    names = sorted(path.name for path in (folder / "fsdp to fsdp" / "checkpoints").iterdir())
    assert names == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("change", ["remove", "cut", "flip", "metadata", "rest", "checksums", "code"])
def test_a_changed_sharded_checkpoint_is_refused_by_name(
    folder: Path, trained: dict[str, Any], change: str, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(folder / "fsdp" / CHECKPOINT, tmp_path / "copy.ckpt"))
    names = {"metadata": ".metadata", "rest": "rest.pt", "checksums": "checksums.json"}
    part = path / names.get(change, "__0_0.distcp")
    content = part.read_bytes()
    if change == "remove":
        part.unlink()
    elif change == "cut":
        part.write_bytes(content[:-1])
    elif change == "code":
        code = pickle.dumps(print)  # with a right checksum
        (path / ".metadata").write_bytes(code)
        sums = json.loads((path / "checksums.json").read_text()) | {".metadata": [len(code), zlib.crc32(code)]}
        (path / "checksums.json").write_text(json.dumps(sums))
    else:
        part.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ArtifactError, match=r"copy\.ckpt is not a whole checkpoint \(its [^\n]*\)\.$"):
        read_checkpoint(path)


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_fsdp_compiles_its_blocks(folder: Path, trained: dict[str, Any]) -> None:
    assert_same(run(folder, "compiled_on_one")["compiled fsdp"], trained["baseline"], tolerance=1e-3)
