"""Intervals are those of a plain bootstrap, and hold the truth about as often as they say."""

import math
import random
import statistics

import numpy as np
import pytest

from retro_lab.evaluation import intervals
from retro_lab.evaluation.intervals import gain_interval, weighted_interval
from retro_lab.runs.chunk_scores import DocumentScores


def scores(nats: np.ndarray, sizes: np.ndarray) -> DocumentScores:
    return DocumentScores(nats=nats, tokens=sizes // 4, bytes=sizes)


def synthetic(documents: int, seed: int, mean: float = 0.0) -> tuple[DocumentScores, DocumentScores]:
    """Return a model and its baseline: hard and easy documents of all lengths, and a gain of `mean` bits per byte."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(100, 3000, documents)
    hardness = generator.gamma(4, 0.5, documents)
    saved = generator.normal(mean * math.log(2), 0.2, documents)
    return scores((hardness - saved) * sizes, sizes), scores(hardness * sizes, sizes)


def plain_bootstrap(model: DocumentScores, baseline: DocumentScores, draws: int) -> tuple[float, float]:
    """Resample documents in plain Python, score both models on each resample, and take the percentiles of gains."""
    generator, gains = random.Random(7), []
    for _ in range(draws):
        chosen = generator.choices(range(len(model)), k=len(model))
        size = sum(int(model.bytes[i]) for i in chosen)
        one, other = (sum(float(each.nats[i]) for i in chosen) / size / math.log(2) for each in (model, baseline))
        gains.append(other - one)
    cuts = statistics.quantiles(gains, n=40)
    return cuts[0], cuts[-1]


def test_a_gains_interval_is_that_of_a_plain_bootstrap() -> None:
    model, baseline = synthetic(25, seed=1, mean=0.1)
    low, high = plain_bootstrap(model, baseline, 4000)
    found = gain_interval(model, baseline)
    assert found is not None
    # Both are estimates, each from its own draws.
    assert found == pytest.approx((low, high), abs=0.05 * (high - low))


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    found = [gain_interval(*synthetic(40, seed, mean=0.05)) for seed in range(200)]
    holding = sum(interval is not None and interval.low <= 0.05 <= interval.high for interval in found)
    assert 0.88 <= holding / len(found) <= 0.99


def test_pairing_takes_out_what_is_hard_for_both_models() -> None:
    model, baseline = synthetic(200, seed=3, mean=0.1)
    gain, level = gain_interval(model, baseline), weighted_interval([[(1.0, model)]])
    assert gain is not None
    assert level is not None
    assert gain.low > 0
    assert gain.high - gain.low < (level.high - level.low) / 3


def test_equal_scores_gain_nothing_for_certain() -> None:
    model, _ = synthetic(10, seed=0)
    assert gain_interval(model, model) == (0, 0)


def test_one_document_has_no_interval() -> None:
    model, baseline = synthetic(1, seed=0)
    assert gain_interval(model, baseline) is None
    assert weighted_interval([[(1.0, model)]]) is None


def test_documents_without_bytes_change_nothing() -> None:
    """Such as those that have none of the chunks in question."""
    model, baseline = synthetic(30, seed=4)
    wider = [
        DocumentScores(*(np.insert(values, [0, 7, 30], 0) for values in (each.nats, each.tokens, each.bytes)))
        for each in (model, baseline)
    ]
    assert gain_interval(*wider) == gain_interval(model, baseline)
    lonely = [DocumentScores(*(np.array([value, 0, 0]) for value in (10.0 * i, 9, 40))) for i in (1, 2)]
    assert gain_interval(*lonely) is None


def test_the_same_scores_give_the_same_interval_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, baseline = synthetic(30, seed=4)
    at_once = gain_interval(model, baseline)
    monkeypatch.setattr(intervals, "BLOCK", 70)
    assert gain_interval(model, baseline) == at_once


def test_weights_scale_and_add_what_they_weigh() -> None:
    model, baseline = synthetic(30, seed=4, mean=0.1)
    gain = gain_interval(model, baseline)
    assert gain is not None
    assert weighted_interval([[(2.0, baseline), (-2.0, model)]]) == pytest.approx((2 * gain.low, 2 * gain.high))
    twice = [(1.0, baseline), (-1.0, model), (-1.0, baseline), (1.0, model)]
    assert weighted_interval([twice]) == pytest.approx((0, 0), abs=1e-12)


def test_seeds_that_disagree_widen_an_interval_and_equal_ones_do_not() -> None:
    model, baseline = synthetic(200, seed=3, mean=0.1)
    better = DocumentScores(model.nats - 0.2 * model.bytes, model.tokens, model.bytes)
    once, again = [(1.0, baseline), (-1.0, model)], [(1.0, baseline), (-1.0, better)]
    alone = weighted_interval([once])
    assert alone is not None
    assert weighted_interval([once, once, once]) == pytest.approx(alone)
    spread = weighted_interval([once, again])
    assert spread is not None
    # Of two seeds, both draws are the same one half of the time.
    assert spread.low == pytest.approx(alone.low, abs=0.02)
    assert spread.high == pytest.approx(alone.high + 0.2 / math.log(2), abs=0.02)


def test_scores_of_other_documents_are_refused() -> None:
    model, _ = synthetic(30, seed=4)
    for other in (synthetic(30, seed=5)[1], synthetic(29, seed=4)[1]):
        with pytest.raises(ValueError, match="same documents"):
            gain_interval(model, other)
