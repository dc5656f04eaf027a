"""Scores add up to those of the whole text, document by document, however it is dealt out."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from retro_lab.evaluation.score import HeldOutScore, Score

WINDOWS, LENGTH, CHUNK_LENGTH = 3, 6, 2
"""Windows of a batch, their tokens, and the tokens of a chunk."""


def batches() -> list[dict[str, Any]]:
    """Return scored batches of a text: nats of any size, each token masked or not, and each window once."""
    random = torch.Generator().manual_seed(0)
    masks = [torch.rand(WINDOWS, LENGTH, generator=random) < 0.8 for _ in range(11)]
    return [
        {
            "nats": torch.rand(WINDOWS, LENGTH, generator=random).exp() * mask,
            "mask": mask,
            "windows": torch.arange(WINDOWS) + WINDOWS * i,
            "num_bytes": torch.tensor(100 + i),
            "documents": torch.tensor(i % 3),
        }
        for i, mask in enumerate(masks)
    ]


def score_of_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    score = HeldOutScore(CHUNK_LENGTH)
    share = batches()[rank::world]
    filler = {"nats": torch.zeros(WINDOWS, LENGTH), "mask": torch.zeros(WINDOWS, LENGTH, dtype=torch.bool)}
    nothing = {"num_bytes": torch.tensor(0), "documents": torch.tensor(0)}
    while len(share) < -(-len(batches()) // world):  # as `RankWindows` deals out
        share.append(batches()[0] | filler | nothing)
    for batch in share:
        score.update(**batch)
    torch.save(tuple(score.compute()), f"{folder}/{rank}.pt")
    whole = HeldOutScore(CHUNK_LENGTH, on_all_devices=False)
    for batch in batches():
        whole.update(**batch)
    torch.save(tuple(whole.compute()), f"{folder}/{rank}-whole.pt")
    dist.destroy_process_group()


def by_window(score: Score) -> tuple[list[list[float]], list[list[float]]]:
    """Return nats and tokens of each window by chunk, as `Windows` adds them up."""

    def added(values: torch.Tensor) -> list[list[float]]:
        table = np.zeros((int(score.windows.max()) + 1, values.shape[1]))
        np.add.at(table, score.windows.numpy(), values.numpy())
        return table.tolist()

    return added(score.window_nats), added(score.window_tokens)


@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_states_what_all_ranks_scored_or_what_it_scored_itself(world: int, tmp_path: Path) -> None:
    mp.start_processes(score_of_rank, (world, str(tmp_path)), nprocs=world, start_method="fork")
    alone = HeldOutScore(CHUNK_LENGTH)
    for batch in batches():
        alone.update(**batch)
    whole = alone.compute()
    nats = sum(float(batch["nats"].double().sum()) for batch in batches())
    size = sum(int(batch["num_bytes"]) for batch in batches())
    tokens = sum(int(batch["mask"].sum()) for batch in batches())
    for rank in range(world):
        score = Score(*torch.load(tmp_path / f"{rank}.pt", weights_only=True))
        assert (int(score.tokens), int(score.bytes), int(score.documents)) == (tokens, size, int(whole.documents))
        assert score.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-6)
        assert score.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-6)
        assert by_window(score) == by_window(whole)  # to the last bit, whichever rank scored what
        assert float(score.window_nats.sum()) == pytest.approx(nats, rel=1e-12)
        assert int(score.window_tokens.sum()) == tokens
        each = torch.load(tmp_path / f"{rank}-whole.pt", weights_only=True)
        assert all(torch.equal(one, other) for one, other in zip(each, whole, strict=True))


def test_the_targets_of_a_window_are_dealt_out_to_its_chunks() -> None:
    """The target after the i-th token of a window is at place i + 1: in the chunk (i + 1) // m of the window."""
    metric = HeldOutScore(CHUNK_LENGTH)
    for batch in batches():
        metric.update(**batch)
    score = metric.compute()
    nats, tokens = (torch.zeros(len(score.windows), LENGTH // CHUNK_LENGTH + 1).double() for _ in range(2))
    for batch in batches():
        for row, window in enumerate(batch["windows"].tolist()):
            for i in range(LENGTH):
                nats[window, (i + 1) // CHUNK_LENGTH] += batch["nats"][row, i].double()
                tokens[window, (i + 1) // CHUNK_LENGTH] += batch["mask"][row, i]
    assert torch.equal(score.window_tokens.double(), tokens)
    torch.testing.assert_close(score.window_nats, nats, rtol=1e-14, atol=0)


def test_a_score_that_was_taken_stays_when_more_is_added() -> None:
    metric = HeldOutScore(CHUNK_LENGTH)
    one, other = batches()[:2]
    metric.update(**one)
    first = metric.compute()
    metric.update(**other)
    assert int(first.tokens) == int(one["mask"].sum())
    assert len(first.windows) == WINDOWS
    assert int(metric.compute().tokens) == int(one["mask"].sum()) + int(other["mask"].sum())
    assert metric.compute().windows.tolist() == list(range(2 * WINDOWS))
    metric.reset()
    assert int(metric.compute().tokens) == 0
    assert len(metric.compute().windows) == 0
