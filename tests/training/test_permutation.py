"""The order of training: every place once an epoch, another order for each seed and epoch, and no bias."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retro_lab.permutation import chances, permute

seeds = st.integers(0, 2**40)


@given(st.integers(1, 3_000), seeds, st.integers(0, 1_000))
@example(1, 0, 0)
@example(2, 0, 0)
@example(1_024, 0, 0)
@example(1_025, 0, 0)
def test_every_number_stands_at_one_place(count: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(count), count, seed, epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


@given(st.integers(1, 2**62), seeds)
def test_a_long_permutation_is_read_place_by_place(count: int, seed: int) -> None:
    """At sizes that no array holds: in range, no two alike, and the same whatever is asked for along with it."""
    places = np.unique(np.random.default_rng(seed).integers(0, count, 100))
    order = permute(places, count, seed, 0)
    assert ((order >= 0) & (order < count)).all()
    assert len(np.unique(order)) == len(places)
    np.testing.assert_array_equal(permute(places[::-1].reshape(-1, 1), count, seed, 0)[::-1, 0], order)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [permute(np.arange(1_000), 1_000, seed, epoch) for seed in range(6) for epoch in range(6)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert (order == other).sum() < 12  # two random orders agree at one place in the mean


@pytest.mark.parametrize("count", [3, 5, 16, 100, 1_000])
def test_every_number_is_as_likely_at_every_place(count: int) -> None:
    """Chi-squared over many epochs, in at most 100 cells: its mean is the degrees of freedom, its deviation known."""
    epochs, cells = 4_000, min(count, 10)
    places = np.linspace(0, count - 1, cells).astype(int)
    table = np.zeros((cells, cells))
    for epoch in range(epochs):
        numbers = permute(places, count, 7, epoch)
        np.add.at(table, (np.arange(cells), numbers * cells // count), 1)
    share = np.bincount(np.arange(count) * cells // count, minlength=cells) / count
    statistic = ((table - epochs * share) ** 2 / (epochs * share)).sum()
    freedom = cells * (cells - 1)
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_what_stands_together_does_not_stay_together() -> None:
    """Places and what follows them are uncorrelated, as are successive numbers."""
    count = 100_000
    order = permute(np.arange(count), count, 0, 0)
    for left, right in ((np.arange(count), order), (order[:-1], order[1:]), (order[:-2], order[2:])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 5 / np.sqrt(count)


def test_chances_are_even_and_unlike_each_other() -> None:
    count = 100_000
    drawn = chances(np.arange(count), 0)
    assert ((drawn >= 0) & (drawn < 1)).all()
    counts = np.bincount((drawn * 100).astype(int), minlength=100)
    statistic = ((counts - count / 100) ** 2 / (count / 100)).sum()
    assert abs(statistic - 99) < 5 * np.sqrt(2 * 99)
    for other in (chances(np.arange(count), 1), np.roll(drawn, 1), permute(np.arange(count), count, 0, 0)):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 5 / np.sqrt(count)
    np.testing.assert_array_equal(chances(np.arange(count)[::-1].reshape(-1, 2), 0).ravel()[::-1], drawn)
