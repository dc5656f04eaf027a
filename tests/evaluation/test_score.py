"""Scores add up to those of the whole text, however it is dealt out."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from retro_lab.evaluation.score import HeldOutScore, Score

BATCHES = [
    (float(nats), tokens, size, documents)
    for nats, tokens, size, documents in np.random.default_rng(0).integers(1, 1000, (11, 4)).tolist()
]


def add(score: HeldOutScore, batches: list[tuple[float, int, int, int]]) -> None:
    for nats, *counts in batches:
        score.update(torch.tensor(nats), *(torch.tensor(count) for count in counts))


def score_of_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    score = HeldOutScore()
    add(score, BATCHES[rank::world])
    torch.save(tuple(score.compute()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_states_what_all_ranks_scored(world: int, tmp_path) -> None:
    mp.start_processes(score_of_rank, (world, str(tmp_path)), nprocs=world, start_method="fork")
    nats, tokens, size, documents = (sum(column) for column in zip(*BATCHES, strict=True))
    for rank in range(world):
        score = Score(*torch.load(tmp_path / f"{rank}.pt", weights_only=True))
        assert (int(score.tokens), int(score.bytes), int(score.documents)) == (tokens, size, documents)
        assert score.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-12)
        assert score.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-12)


def test_a_score_that_was_taken_stays_when_more_is_added() -> None:
    metric = HeldOutScore()
    add(metric, BATCHES[:1])
    first = metric.compute()
    add(metric, BATCHES[1:2])
    assert int(first.tokens) == BATCHES[0][1]
    assert int(metric.compute().tokens) == BATCHES[0][1] + BATCHES[1][1]
    metric.reset()
    assert int(metric.compute().tokens) == 0
