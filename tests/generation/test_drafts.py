"""Drafts: what is proposed, and that a text is the same with them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retro_lab.generation.drafts import LONGEST, SHORTEST, Drafter

FEW_TOKENS = st.lists(st.integers(0, 3), max_size=40)


def drafter(*neighbors: list[int], own_text: bool = False) -> Drafter:
    """Return a drafter of a text that has retrieved these neighbors, each at a chunk of its own."""
    made = Drafter(own_text=own_text)
    for neighbor in neighbors:
        made.add([np.array(neighbor, int)])
    return made


def test_what_follows_the_last_tokens_in_a_neighbor_is_proposed() -> None:
    neighbor = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert list(drafter(neighbor).propose([0, 3, 4], 8)) == [5, 6]
    assert list(drafter(neighbor).propose([2, 3, 4], 8)) == [5, 6, 7]  # a longer match says more
    assert list(drafter(neighbor).propose([2, 3, 4], 1)) == [5]
    assert list(drafter(neighbor).propose([2, 3, 4], 0)) == []
    assert list(drafter(neighbor).propose([0, 0, 4], 8)) == []  # one token alone says too little
    assert list(drafter(neighbor).propose([7, 8, 9], 8)) == []  # nothing follows
    assert list(drafter(neighbor).propose([4], 8)) == list(drafter(neighbor).propose([], 8)) == []


def test_the_longest_match_counts_and_then_the_newest_neighbor_and_the_nearest() -> None:
    assert list(drafter([1, 2, 3, 4], [9, 2, 3, 5]).propose([1, 2, 3], 1)) == [4]
    assert list(drafter([1, 2, 3, 4], [1, 2, 3, 5]).propose([1, 2, 3], 1)) == [5]
    both = Drafter()
    both.add([np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])])
    assert list(both.propose([1, 2, 3], 1)) == [4]


def test_the_own_text_comes_after_neighbors_and_may_repeat_itself() -> None:
    text = [1, 2, 3, 7, 1, 2, 3]
    assert list(drafter([1, 2, 3, 4], own_text=True).propose(text, 1)) == [4]
    assert list(drafter([9, 2, 3, 4], own_text=True).propose(text, 1)) == [7]
    assert list(drafter([9, 2, 3, 4]).propose(text, 1)) == [4]
    assert list(drafter(own_text=True).propose([5] * 9, 6)) == [5] * 6
    assert list(drafter(own_text=True).propose([5, 6] * 5, 5)) == [5, 6, 5, 6, 5]


def test_proposals_that_came_true_make_later_ones_longer_and_false_ones_end_them() -> None:
    neighbor = list(range(50))
    made = drafter(neighbor)
    lengths = []
    for _ in range(4):
        proposed = made.propose([99, 10, 11], 40)
        lengths.append(len(proposed))
        made.judge(len(proposed))
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0] > 0
    made = drafter(neighbor)
    for _ in range(20):
        if made.propose([99, 10, 11], 40):
            made.judge(0)
    assert not made.propose([99, 10, 11], 40)
    assert made.propose([9, 10, 11], 40)  # longer matches have not failed


@given(FEW_TOKENS, FEW_TOKENS, FEW_TOKENS, st.integers(0, 12), st.booleans())
def test_proposals_continue_a_match(first: list[int], second: list[int], text: list[int], most: int, own: bool) -> None:
    """Also when the text grows between calls: what it is known to hold must not lag behind."""
    made = drafter(first, second, own_text=own)
    for end in range(len(text) + 1):
        tokens = text[:end]
        proposed = list(made.propose(tokens, most))
        made.judge(len(proposed) // 2)
        assert len(proposed) <= most
        if proposed:
            last = tuple(tokens[-SHORTEST:])
            known = [first, second, *([tokens + proposed] if own else [])]
            spans = [(source[place - SHORTEST : place], source[place:]) for source in known
                     for place in range(SHORTEST, len(source))]  # fmt: skip
            assert any(tuple(before) == last and after[: len(proposed)] == proposed for before, after in spans)
            assert len(last) <= LONGEST
