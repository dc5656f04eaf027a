"""The longest common substring of chunks and neighbors, against a dynamic program over every pair of places."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_lab.retrieval import substrings
from retro_lab.retrieval.substrings import longest_common_substrings

MARKER = 1


def longest_run(chunk, neighbor):
    """The textbook's program: the run that ends at each pair of places."""
    longest, above = 0, [0] * (len(neighbor) + 1)
    for token in chunk:
        row = [0]
        for place, other in enumerate(neighbor):
            row.append(above[place] + 1 if token == other != MARKER else 0)
        longest, above = max(longest, *row), row
    return longest


def reference(chunks, lengths, neighbors, neighbor_lengths):
    return [
        max(
            (longest_run(chunk[:length].tolist(), one[:real].tolist()) for one, real in zip(found, reals, strict=True)),
            default=0,
        )
        for chunk, length, found, reals in zip(chunks, lengths, neighbors, neighbor_lengths, strict=True)
    ]


@st.composite
def cases(draw, longest):
    """Chunks and neighbors of few different tokens, parts of chunks copied into some of them."""
    count, k = draw(st.sampled_from([(4, 3), (2, 1), (1, 4), (3, 0), (0, 2)]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))  # sizes are its too: hypothesis prefers small ones
    m, r = random.integers(1, [longest + 1, 2 * longest + 1])
    smallest = draw(st.sampled_from([0, 2**16 - 8]))
    alphabet = np.array([MARKER, *range(smallest, smallest + random.integers(1, 9))])
    chunks = random.choice(alphabet, (count, m)).astype(np.uint16)
    neighbors = random.choice(alphabet, (count, k, r)).astype(np.uint16)
    for row, rank in np.ndindex(count, k):
        run = random.integers(0, min(m, r) + 1)
        here, there = random.integers(m - run + 1), random.integers(r - run + 1)
        neighbors[row, rank, there : there + run] = chunks[row, here : here + run]
    whole = draw(st.booleans())
    lengths = np.full(count, m) if whole else random.integers(0, m + 1, count)
    neighbor_lengths = np.full((count, k), r) if whole else random.integers(0, r + 1, (count, k))
    return chunks, lengths, neighbors, neighbor_lengths


@given(cases(12), st.integers(1, 3))
def test_short_chunks_agree_with_the_dynamic_program_in_batches_of_any_size(case, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(substrings, "CHUNKS_AT_ONCE", at_once)
        assert longest_common_substrings(*case, MARKER).tolist() == reference(*case)


@given(cases(140))
def test_chunks_of_several_words_agree_with_the_dynamic_program(case):
    assert longest_common_substrings(*case, MARKER).tolist() == reference(*case)


@pytest.mark.parametrize("m", [1, 63, 64, 65, 128, 129])
def test_a_chunk_in_its_neighbor_is_found_whole(m):
    """Also if its tokens are all equal; in the first of its neighbors or in the last, at its beginning or its end."""
    chunks = np.stack([np.full(m, 5), np.arange(2, m + 2), np.arange(2, m + 2)])
    neighbors = np.zeros((3, 4, 2 * m), np.int64)
    neighbors[0, 0] = 5
    neighbors[1, 3, m:] = chunks[1]
    neighbors[2, 0, :m] = chunks[2]
    lengths = np.full((3, 4), 2 * m)
    assert longest_common_substrings(chunks, np.full(3, m), neighbors, lengths, MARKER).tolist() == [m] * 3
    lengths[1] -= 1
    assert longest_common_substrings(chunks, np.full(3, m), neighbors, lengths, MARKER).tolist() == [m, m - 1, m]


def test_markers_and_padding_equal_nothing():
    chunks = np.array([[MARKER, 7, 8, MARKER], [7, 7, 7, 7]])
    neighbors = np.array([[[MARKER, 7, 8, MARKER]], [[7, 7, 7, 7]]])
    lengths, neighbor_lengths = np.array([4, 3]), np.array([[4], [2]])
    assert longest_common_substrings(chunks, lengths, neighbors, neighbor_lengths, MARKER).tolist() == [2, 2]


def test_memory_does_not_grow_with_the_number_of_chunks():
    random = np.random.default_rng(0)

    def peak(count):
        chunks, neighbors = random.integers(2, 99, (count, 16)), random.integers(2, 99, (count, 4, 32))
        lengths, neighbor_lengths = np.full(count, 16), np.full((count, 4), 32)
        tracemalloc.start()
        longest_common_substrings(chunks, lengths, neighbors, neighbor_lengths, MARKER)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(20 * substrings.CHUNKS_AT_ONCE) < 1.5 * peak(substrings.CHUNKS_AT_ONCE)
