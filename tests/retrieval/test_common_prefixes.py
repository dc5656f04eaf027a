"""LCP against its definition, tried out place by place."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retro_lab.retrieval.common_prefixes import common_prefixes

MARKER = 0
tokens = st.lists(st.integers(1, 3), max_size=14)
neighbor_lists = st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3)


def appears(run: list[int], texts: list[list[int]]) -> bool:
    return any(text[at : at + len(run)] == run for text in texts for at in range(len(text) - len(run) + 1))


@given(text=tokens, chunk=st.integers(0, 5), found=neighbor_lists, data=st.data())
def test_it_is_the_longest_run_up_to_a_token_that_was_retrieved(text, chunk, found, data) -> None:
    document = [MARKER, *text]
    start = max(0, len(document) - chunk)
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=len(found), max_size=len(found)))
    real = [neighbor[:length] for neighbor, length in zip(found, lengths, strict=True)]
    prefixes, runs = common_prefixes(np.array(document), start, np.array(found), np.array(lengths), MARKER)

    def longest(end: int) -> int:
        """Largest j of which the j tokens before `end`, none of them a marker, appear."""
        return max(
            (
                j
                for j in range(1, end + 1)
                if MARKER not in document[end - j : end] and appears(document[end - j : end], real)
            ),
            default=0,
        )

    assert prefixes.tolist() == [longest(end) for end in range(start + 1, len(document) + 1)]
    ends = range(start + 1, len(document) + 1)
    for neighbor, row in zip(real, runs.tolist(), strict=True):
        for end, run in enumerate(row[: len(neighbor)], 1):
            tails = [neighbor[end - j : end] for j in range(1, end + 1)]
            fitting = [
                len(tail)
                for tail in tails
                if MARKER not in tail and any(document[:stop][-len(tail) :] == tail for stop in ends)
            ]
            assert run == max(fitting, default=0)


def test_nothing_retrieved_is_nothing_in_common() -> None:
    prefixes, runs = common_prefixes(np.array([0, 1, 2]), 1, np.zeros((0, 0), int), np.zeros(0, int), MARKER)
    assert prefixes.tolist() == [0, 0]
    assert runs.size == 0
