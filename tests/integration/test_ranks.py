"""Trainings and builds of several ranks on the real command line, however they are started."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from disturbed_builds import checksums
from local_experiment import command, furnish, run, run_apart
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_bert):
    """A folder with a corpus in it, the small encoder as the embedder, and what one process builds."""
    folder = furnish(tmp_path_factory.mktemp("workplace"), tiny_bert)
    run(folder, "task=build")
    return folder


def test_one_gpu_is_trained_on_in_bfloat16(workplace):
    """It brings autocast, clipping and a fused optimizer together; tried on a processor."""
    arguments = ["trainer=gpu", "trainer.accelerator=cpu", "schedule.warmup_steps=40", "logger=none"]
    done = run(workplace, "task=train", "name=gpu", *arguments)
    assert "precision bf16-mixed" in done.stderr
    assert "RETRO[On]" in done.stdout
    said = " ".join(done.stderr.split())
    assert "warm-up shortened to 0 steps, a tenth of the training, from schedule.warmup_steps=40" in said


def test_the_trainer_of_many_machines_trains_in_bfloat16(workplace):
    """Its ranks are of Lightning's own launcher; tried on one machine."""
    ranks = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.num_nodes=1", "data.micro_batch_size=1"]
    done = run_apart(workplace, "task=train", "name=machines", "trainer=multi_node", "logger=none", *ranks)
    assert "2 x cpu, precision bf16-mixed" in done.stderr
    assert "RETRO[On]" in done.stdout


def test_fsdp_trains_what_one_process_trains_which_goes_on_with_its_run(workplace):
    common = ["task=train", "trainer.precision=32-true", "logger=none"]
    ranks = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
    sharded = run_apart(workplace, "name=sharded", *common, *ranks)
    assert "2 x cpu, precision 32-true" in sharded.stderr
    assert "RETRO[On]" in sharded.stdout
    run(workplace, "name=alone", *common)
    folders = [workplace / "outputs" / name / "retro" for name in ("sharded", "alone")]
    found, expected = (load_file(folder / "model.safetensors") for folder in folders)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():  # a step moves weights by six times as much
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-3)
    scores, others = map(bits_per_byte, folders)
    assert scores == pytest.approx(others, abs=1e-3)
    again = run(workplace, "name=sharded", "task=evaluate", "evaluation.k=[0,1,2]", "logger=none").stderr
    assert again.count("evaluating") == 1
    more = bits_per_byte(folders[0])
    assert more.keys() == {0, 1, 2}
    assert {k: more[k] for k in scores} == scores, "scored by two ranks, and kept"


def bits_per_byte(folder):
    """Return a model's scores by k."""
    record = json.loads((folder / "result.json").read_text())
    return {entry["k"]: entry["bits_per_byte"] for entry in record["evaluations"]}


def test_ranks_of_torchrun_share_a_build_and_one_of_them_speaks(workplace):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = run_apart(workplace, "task=build", "paths.artifacts=by_torchrun", launcher=launcher)
    assert checksums(workplace / "by_torchrun") == checksums(workplace / "artifacts")
    splits = ["train", "validation", "test"]
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [*splits, "test", "validation", "index"]
    assert done.stdout.splitlines()[-1].endswith("recall@10 1.0")
    begun = [line.split()[0] for line in done.stderr.splitlines() if "building" in line or "reusing" in line]
    assert len(begun) == len(list(workplace.glob("artifacts/*/*/manifest.json")))


def test_four_ranks_of_slurm_of_which_one_is_killed_and_comes_back(workplace, tmp_path):
    script = Path(__file__).with_name("ranks_of_slurm.py")
    arguments = [tmp_path, "by_slurm/embeddings/*/00000", *command("task=build", "paths.artifacts=by_slurm")]
    quiet = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # as the command line has it before it imports anything
    done = subprocess.run(
        [sys.executable, script, *arguments], cwd=workplace, capture_output=True, text=True, env=quiet
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["killed"] == -signal.SIGKILL, "killed too late to test anything"
    assert outcome["statuses"] == [0] * 4, outcome["outputs"]
    assert checksums(workplace / "by_slurm") == checksums(workplace / "artifacts")
    assert "train:" in outcome["outputs"][0][0]
    assert outcome["outputs"][1:] == [["", ""]] * 3


def test_cells_with_several_ranks_each_run_once_in_their_own_folder(workplace):
    """Lightning starts a rank by running the command again: here it would be the whole sweep."""
    two_ranks = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    settings = [
        "task=train",
        "name=ranks",
        "retrieval.k=0",
        "schedule.tokens=256",
        "data.batch_size=3,4",
        "logger=none",
    ]
    swept = run_apart(workplace, "-m", *two_ranks, *settings, check=1)
    folder = workplace / "outputs" / "sweeps" / "ranks"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "report", "data.batch_size=3", "data.batch_size=4"
    }  # fmt: skip
    assert "cannot be divided over 2 devices" in (folder / "data.batch_size=3" / "failed.json").read_text()
    assert json.loads((folder / "data.batch_size=4/baseline/result.json").read_text())["tokens"] == 256
    trained = [line for line in swept.stderr.splitlines() if line.startswith("folder")]
    assert sum("data.batch_size=4/baseline" in line for line in trained) == 1
    assert swept.stderr.count("2 x cpu") == 1
    assert not list(workplace.glob("outputs/*/data.batch_size*"))
