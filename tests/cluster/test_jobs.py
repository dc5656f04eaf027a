"""Jobs on a real SLURM of two nodes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import OVERRIDES, Lab
from in_process import small
from two_nodes import wait_until

LONG = (
    "task=train", "trainer.num_nodes=2", "trainer.strategy=ddp", "schedule.tokens=32000", "cluster.requeues=3"
)  # fmt: skip
CHECKPOINT = "retro/checkpoints/last.ckpt"


def weights(lab: Lab, run: str) -> dict[str, torch.Tensor]:
    path = lab.folder / "outputs" / run / CHECKPOINT
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def curve(lab: Lab, run: str) -> list[dict[str, float]]:
    return json.loads((lab.folder / "outputs" / run / "retro/result.json").read_text())["curve"]


def assert_same_training(lab: Lab, undisturbed: str, other: str) -> None:
    """Compare final weights and curves, to the last bit."""
    expected, found = weights(lab, undisturbed), weights(lab, other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert curve(lab, undisturbed) == curve(lab, other)


def checksums(root: Path) -> dict[str, str]:
    return {
        f"{path.parent.relative_to(root)}/{name}": record["sha256"]
        for path in root.glob("*/*/manifest.json")
        for name, record in json.loads(path.read_text())["files"].items()
    }


@pytest.fixture(scope="module")
def undisturbed(lab: Lab) -> str:
    """A run of two nodes that nothing happened to."""
    lab.submit(*LONG, "name=undisturbed")
    wait_until(lab.ended("undisturbed"), "the job has ended")
    return "undisturbed"


def test_two_nodes_train_one_model(lab: Lab, undisturbed: str) -> None:
    assert lab.state(undisturbed)["status"] == "done", lab.log(undisturbed)
    assert lab.state(undisturbed)["attempts"] == 1
    assert "devices     2 x cpu" in lab.log(undisturbed)
    assert "on n[1-2]" in lab.log(undisturbed)
    shown = lab.run("status", f"outputs/{undisturbed}")
    assert (shown.returncode, shown.stdout.splitlines()[-1]) == (0, "1 done")
    assert "not submitted again" in lab.submit(*LONG, f"name={undisturbed}")
    progress = json.loads((lab.folder / "outputs" / undisturbed / "retro/progress.json").read_text())
    assert progress["step"] == progress["steps"] == 125


def test_two_nodes_each_hold_a_part_of_a_model(lab: Lab, undisturbed: str) -> None:
    short = ("task=train", "schedule.tokens=4096")
    lab.submit(
        *short, "name=sharded", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2",
        "trainer.precision=32-true",
    )  # fmt: skip
    lab.submit(*short, "name=alone")
    wait_until(lab.ended("sharded", "alone"), "both jobs have ended")
    assert lab.state("sharded")["status"] == "done", lab.log("sharded")
    assert (lab.folder / "outputs/sharded" / CHECKPOINT).is_dir()
    for point, expected in zip(curve(lab, "sharded"), curve(lab, "alone"), strict=True):
        assert point == pytest.approx(expected, abs=1e-3)


def test_nodes_share_a_build(lab: Lab, undisturbed: str) -> None:
    lab.submit("task=build", "name=shared", "trainer.num_nodes=2", "paths.artifacts=shared")
    wait_until(lab.ended("build-shared"), "the job has ended")
    assert lab.state("build-shared")["status"] == "done", lab.log("build-shared")
    shared = checksums(lab.folder / "shared")
    assert shared
    assert shared == checksums(lab.folder / "artifacts")
    alone = ("task=build", "paths.artifacts=alone")
    done = lab.run(*small(OVERRIDES), *OVERRIDES, *alone)
    assert done.returncode == 0, done.stderr
    assert shared == checksums(lab.folder / "alone")


@pytest.mark.parametrize("killed", [False, True])
def test_jobs_of_an_array_share_a_build_and_go_on_without_a_killed_one(
    lab: Lab, undisturbed: str, killed: bool
) -> None:
    name = f"divided{killed}"
    workers = [f"build-{name}/worker_00{number}" for number in range(2)]
    on_two_nodes = ("build.dispatcher=slurm", "build.workers=2", "cluster.options=[--exclusive]", "cluster.requeues=0")
    build = ("task=build", f"name={name}", f"paths.artifacts={name}", *on_two_nodes)
    printed = lab.submit(*build)
    assert printed.count(workers[0].rpartition("/")[0]) >= 2
    if killed:
        wait_until(lambda: all("documents" in lab.log(worker) for worker in workers), "both are at work")
        for process in lab.cluster.tasks_of("n2"):
            os.kill(process, 9)
        wait_until(lambda: "done" in {lab.state(worker)["status"] for worker in workers}, "the other one has ended")
    else:
        wait_until(lab.ended(*workers), "both have ended")
    assert checksums(lab.folder / name) == checksums(lab.folder / "artifacts")
    shown = lab.run("status", f"outputs/build-{name}")
    assert (shown.returncode, shown.stdout.splitlines()[-1]) == ((1, "1 done, 1 failed") if killed else (0, "2 done"))
    again = lab.submit(*build)
    assert ("1 job;" if killed else "nothing: there is nothing left to do") in again
    wait_until(lab.ended(*workers), "all have ended")
    assert lab.run("status", f"outputs/build-{name}").returncode == 0


def test_a_signaled_job_saves_its_state_and_goes_on(lab: Lab, undisturbed: str) -> None:
    lab.submit(*LONG, "name=signaled")
    checkpoint = lab.folder / "outputs/signaled" / CHECKPOINT
    wait_until(checkpoint.is_file, "there is a checkpoint")
    lab.cluster.run("scancel", "--signal=USR2", str(lab.state("signaled")["job"]))
    wait_until(lambda: lab.state("signaled")["status"] == "waiting", "the job is queued again")
    assert "1 waiting" in lab.run("status", "outputs/signaled").stdout
    assert "not submitted again" in lab.submit(*LONG, "name=signaled")
    wait_until(lab.ended("signaled"), "the job has ended")
    assert lab.state("signaled") == lab.state("signaled") | {"status": "done", "attempts": 2}, lab.log("signaled")
    assert "is queued again: SLURM asked it to stop" in lab.log("signaled")
    assert "resuming" in lab.log("signaled")
    assert_same_training(lab, undisturbed, "signaled")


def test_a_job_outlives_the_loss_of_a_node(lab: Lab, undisturbed: str) -> None:
    lab.submit(*LONG, "name=lost")
    wait_until((lab.folder / "outputs/lost" / CHECKPOINT).is_file, "there is a checkpoint")
    lab.cluster.lose_node("n2")
    wait_until(lambda: lab.state("lost").get("status") != "running" or "n2" in lab.down(), "the loss is noticed")
    lab.cluster.start_node("n2")
    wait_until(lab.ended("lost"), "the job has ended")
    assert lab.state("lost")["status"] == "done", lab.log("lost")
    assert lab.state("lost")["attempts"] >= 2
    assert_same_training(lab, undisturbed, "lost")


def test_a_killed_rank_is_a_failure_that_can_be_submitted_again(lab: Lab, undisturbed: str) -> None:
    lab.submit(*LONG, "name=killed")
    wait_until((lab.folder / "outputs/killed" / CHECKPOINT).is_file, "there is a checkpoint")
    [task] = lab.cluster.tasks_of("n2")
    os.kill(task, 9)
    wait_until(lab.ended("killed"), "the job has ended")
    assert lab.state("killed")["status"] == "failed"
    shown = lab.run("status", "outputs/killed")
    assert shown.returncode == 1
    assert "failed" in shown.stdout


def test_a_job_that_its_user_cancels_stays_away(lab: Lab, undisturbed: str) -> None:
    lab.submit(*LONG, "name=canceled")
    wait_until((lab.folder / "outputs/canceled" / CHECKPOINT).is_file, "there is a checkpoint")
    lab.cluster.run("scancel", str(lab.state("canceled")["job"]))
    wait_until(lambda: not lab.cluster.run("squeue", "--noheader"), "the queue is empty")
    shown = lab.run("status", "outputs/canceled")
    assert shown.returncode == 1
    assert "failed" in shown.stdout
    assert lab.state("canceled")["attempts"] == 1


def test_a_failed_cell_is_shown_and_alone_submitted_again(lab: Lab, undisturbed: str) -> None:
    grid = ("-m", "task=train", "name=grid", "retrieval.k=0", "corpus.path=my.jsonl,late.jsonl")
    printed = lab.submit(*grid)
    assert printed.count("sweeps/grid/corpus.path") == 2
    cells = [f"sweeps/grid/corpus.path={name}" for name in ("my.jsonl", "late.jsonl")]
    wait_until(lab.ended(*cells), "both cells have ended")
    shown = lab.run("status", "outputs/sweeps/grid")
    assert shown.returncode == 1
    assert shown.stdout.splitlines()[-1] == "1 done, 1 failed"
    assert "late.jsonl" in str(lab.state(cells[1])["error"])
    first = lab.state(cells[0])
    shutil.copy(lab.folder / "my.jsonl", lab.folder / "late.jsonl")
    again = lab.submit(*grid)
    assert "1 job;" in again
    wait_until(lab.ended(*cells), "both cells have ended")
    assert lab.run("status", "outputs/sweeps/grid").returncode == 0
    assert lab.state(cells[0]) == first
    assert "retrieval" not in lab.log(cells[1])
    report = lab.run("+experiment=quickstart", "-m", "name=grid", "task=report", "corpus.path=my.jsonl,late.jsonl")
    assert report.returncode == 0, report.stderr
