"""Jobs on a real SLURM of two nodes."""

from conftest import Lab
from two_nodes import wait_until

TWO_NODES = ("trainer.num_nodes=2", "trainer.strategy=ddp")


def test_two_nodes_train_one_model(lab: Lab) -> None:
    lab.submit("task=train", "name=two", *TWO_NODES)
    wait_until(lab.ended("two"), "the job has ended")
    assert lab.state("two")["status"] == "done", lab.log("two")
