"""Tokens read with a cache, in any number of calls, get the states that a pass over the whole sequence gives them."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builders import random_tokens, small_choices, small_model, small_size
from naive_retro import NaiveRetro, Vectors
from torch import Tensor

from retro_lab.model.cache import Cache
from retro_lab.model.retro import RetroModel


@dataclass
class Batch:
    """Sequences of real tokens, and the neighbors of each of their chunks."""

    model: RetroModel
    lengths: list[int]
    """Tokens of each sequence; they are aligned on the right."""
    k: int = 2
    r: int = 8
    retrieval: bool = True
    missing: bool = False
    """Whether some neighbors are missing or short."""
    seed: int = 1
    tokens: Tensor = field(init=False)
    padding: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = random_tokens(len(self.lengths), max(self.lengths), seed=self.seed)
        self.padding = max(self.lengths) - torch.tensor(self.lengths)
        self.tokens[torch.arange(max(self.lengths)) < self.padding[:, None]] = -1
        self.all_neighbors = random_tokens(len(self.lengths), max(self.lengths), self.k, self.r, seed=self.seed + 1)
        self.all_real = torch.full(self.all_neighbors.shape[:3], self.r)
        if self.missing:
            self.all_real = random_tokens(*self.all_neighbors.shape[:3], seed=self.seed + 2) % (self.r + 1)

    def neighbors(self, row: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Neighbors of the chunks that a sequence completes with its tokens from `start` up to `stop`."""
        m = self.model.chunk_length
        chunks = slice(max(0, start) // m, max(0, stop) // m)
        return self.all_neighbors[row, chunks], self.all_real[row, chunks]

    @torch.no_grad()
    def alone(self, row: int) -> Tensor:
        """States of a sequence that is read by itself and at once."""
        tokens = self.tokens[row : row + 1, self.padding[row] :]
        found = [part[None] for part in self.neighbors(row, 0, tokens.shape[1])] if self.retrieval else [None, None]
        documents = torch.zeros_like(tokens) if self.model.document_masks else None
        return self.model(tokens, *found, documents)[0]

    @torch.no_grad()
    def read(self, cache: Cache, stop: int) -> Tensor:
        """Read the next columns, up to `stop`."""
        start, first = cache.length, cache.length == 0
        padding = self.padding.tolist()
        completed = cache.completed(stop - start, padding if first else None)
        found: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.retrieval and max(completed):
            neighbors = torch.full((len(padding), max(completed), self.k, self.r), -1)
            real = torch.zeros(neighbors.shape[:3], dtype=torch.int64)
            for row, pad in enumerate(padding):
                of_row, real_of_row = self.neighbors(row, start - pad, stop - pad)
                assert len(of_row) == completed[row]
                neighbors[row, : len(of_row)], real[row, : len(of_row)] = of_row, real_of_row
            found = neighbors, real if self.missing or min(completed) < max(completed) else None
        given = self.padding if first and self.padding.any() else None
        return self.model(self.tokens[:, start:stop], *found, padding=given, cache=cache)

    def assert_equal_to_alone(self, hidden: Tensor, start: int = 0) -> None:
        """Compare states of the columns from `start` on."""
        for row, pad in enumerate(self.padding.tolist()):
            expected, found = self.alone(row)[max(0, start - pad) :], hidden[row, max(0, pad - start) :]
            torch.testing.assert_close(found, expected[: len(found)], rtol=1e-10, atol=1e-10)


def read_in_calls(batch: Batch, cache: Cache, stops: list[int]) -> Tensor:
    start = cache.length
    hidden = torch.cat([batch.read(cache, stop) for stop in stops], dim=1)
    assert cache.length == stops[-1] == start + hidden.shape[1]
    return hidden


@st.composite
def models(draw: st.DrawFn) -> RetroModel:
    """Draw every choice that a cache has to know."""
    layers, shared = draw(st.integers(1, 3)), draw(st.booleans())
    size = small_size(
        layers=layers,
        cca_layers=draw(st.lists(st.integers(1, layers), unique=True)),
        encoder_width=8 if shared else 6,
        encoder_ca_layers=draw(st.lists(st.integers(1, 2), unique=True)),
    )
    choices = small_choices(
        chunk_length=draw(st.integers(1, 5)),
        positions=draw(st.sampled_from(["transformer_xl", "rotary"])),
        document_masks=draw(st.booleans()),
        shared_embeddings=shared and bool(size.cca_layers),
        query_conditioning=draw(st.booleans()),
        cca_positions=draw(st.booleans()),
        tied_readout=draw(st.booleans()),
    )
    return small_model(size, choices, seed=draw(st.integers(0, 100)))


@st.composite
def batches(draw: st.DrawFn, model: RetroModel, *, equal: bool) -> Batch:
    """Draw sequences, of equal lengths or not."""
    longest, count = draw(st.integers(1, 4 * model.chunk_length + 2)), draw(st.integers(1, 3))
    lengths = [longest] * count if equal else [draw(st.integers(1, longest)) for _ in range(count - 1)] + [longest]
    return Batch(
        model,
        lengths,
        k=draw(st.integers(1, 3)),
        r=draw(st.integers(1, 2 * model.chunk_length)),
        retrieval=model.encoder is not None and draw(st.booleans()),
        missing=draw(st.booleans()),
        seed=draw(st.integers(0, 100)),
    )


@given(st.data(), st.booleans())
@settings(max_examples=60)
def test_any_split_into_calls_gives_the_states_of_one_pass(data: st.DataObject, equal: bool) -> None:
    batch = data.draw(batches(data.draw(models()), equal=equal))
    first, longest = int(batch.padding.max()) + 1, max(batch.lengths)
    stops = sorted(data.draw(st.sets(st.integers(first, longest), max_size=8)) | {longest})
    batch.assert_equal_to_alone(read_in_calls(batch, batch.model.empty_cache(), stops))


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
@pytest.mark.parametrize("retrieval", [True, False])
def test_token_by_token(positions: str, retrieval: bool) -> None:
    """Far beyond the first buffers, in sequences whose chunks end at different tokens."""
    model = small_model(model=small_choices(positions=positions))
    batch = Batch(model, [90, 87, 96], retrieval=retrieval, missing=True)
    batch.assert_equal_to_alone(read_in_calls(batch, model.empty_cache(), list(range(10, 97))))


@given(st.data())
@settings(max_examples=25)
def test_rows_are_kept_repeated_and_reordered(data: st.DataObject) -> None:
    batch = data.draw(batches(data.draw(models()), equal=False))
    first, longest = int(batch.padding.max()) + 1, max(batch.lengths)
    cut = data.draw(st.integers(first, longest))
    cache, rows = batch.model.empty_cache(), data.draw(st.lists(st.integers(0, len(batch.lengths) - 1), min_size=1))
    batch.read(cache, cut)
    cache.select(rows)
    for name in ("tokens", "padding", "all_neighbors", "all_real"):
        setattr(batch, name, getattr(batch, name)[rows])
    shared = int(batch.padding.min())  # padding of all rows goes
    batch.tokens, batch.padding = batch.tokens[:, shared:], batch.padding - shared
    cut, longest = cut - shared, longest - shared
    assert (cache.length, cache.padding) == (cut, batch.padding.tolist())
    if cut == longest:
        return
    batch.assert_equal_to_alone(read_in_calls(batch, cache, list(range(cut + 1, longest + 1))), cut)


@given(st.data())
@settings(max_examples=25)
def test_forgotten_tokens_leave_no_trace(data: st.DataObject) -> None:
    """Drafts that were rejected: at most as many as there are tokens since the last chunk of any sequence."""
    batch = data.draw(batches(data.draw(models()), equal=False))
    first, longest = int(batch.padding.max()) + 1, max(batch.lengths)
    cut = data.draw(st.integers(first, longest))
    cache = batch.model.empty_cache()
    batch.read(cache, cut)
    room = min((pad - cut - 1) % batch.model.chunk_length for pad in batch.padding.tolist())
    with torch.no_grad():
        for count in range(1, room + 1):
            batch.model(random_tokens(len(batch.lengths), count, seed=9), cache=cache)
            cache.truncate(cut)
            assert cache.length == cut
    if cut < longest:
        batch.assert_equal_to_alone(read_in_calls(batch, cache, list(range(cut + 1, longest + 1))), cut)


@given(st.data())
@settings(max_examples=25)
def test_prompts_that_are_read_apart_are_continued_together(data: st.DataObject) -> None:
    batch = data.draw(batches(data.draw(models()), equal=False))
    rows, caches = len(batch.lengths), []
    prompts = [data.draw(st.integers(1, length)) for length in batch.lengths]
    behind = min(length - prompt for length, prompt in zip(batch.lengths, prompts, strict=True))
    prompts = [length - behind for length in batch.lengths]
    for row in range(rows):
        alone = Batch(batch.model, [batch.lengths[row]], batch.k, batch.r, batch.retrieval, batch.missing)
        alone.tokens = batch.tokens[row : row + 1, batch.padding[row] :]
        alone.all_neighbors, alone.all_real = batch.all_neighbors[row : row + 1], batch.all_real[row : row + 1]
        caches.append(batch.model.empty_cache())
        alone.read(caches[-1], prompts[row])
    cache = Cache.join(caches)
    assert cache.length == max(prompts)
    assert cache.padding == batch.padding.tolist()
    if behind:
        start = cache.length
        stops = list(range(start + 1, start + behind + 1))
        batch.assert_equal_to_alone(read_in_calls(batch, cache, stops), start)


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
def test_joined_caches_keep_no_padding_that_all_begin_with(positions: str) -> None:
    """A batch in which texts end and others begin does not grow with each join."""
    model = small_model(model=small_choices(positions=positions))
    tokens, padded, neighbors = random_tokens(2, 9), random_tokens(2, 12), random_tokens(2, 2, 2, 8, seed=2)
    padded[:, 3:] = tokens
    long, short = model.empty_cache(), model.empty_cache()
    with torch.no_grad():
        whole = model(tokens, neighbors)
        model(padded[:1, :11], neighbors[:1], padding=torch.tensor([3]), cache=long)
        model(tokens[1:, :7], neighbors[1:, :1], cache=short)
        joined = Cache.join([long, short])
        assert (joined.length, joined.padding) == (8, [0, 1])
        next_tokens = torch.stack([tokens[0, 8:9], tokens[1, 7:8]])
        hidden = model(next_tokens, neighbors[:, 1:], torch.tensor([[[0, 0]], [[8, 8]]]), cache=joined)
    torch.testing.assert_close(hidden[:, 0], torch.stack([whole[0, 8], whole[1, 7]]), rtol=1e-10, atol=1e-10)


def test_a_cache_that_has_read_nothing_is_not_joined() -> None:
    model = small_model()
    cache = model.empty_cache()
    with torch.no_grad():
        model(random_tokens(1, 3), cache=cache)
    with pytest.raises(ValueError, match="read nothing"):
        Cache.join([cache, model.empty_cache()])


def test_chunks_may_begin_with_the_padding() -> None:
    """As in the layout of questions, whose first chunk is filled up on the left."""
    model, padding = small_model(), torch.tensor([0, 2, 3])
    tokens, neighbors = random_tokens(3, 11), random_tokens(3, 2, 2, 8, seed=2)
    with torch.no_grad():
        whole = model(tokens, neighbors, padding=padding)
        cache = model.empty_cache(padding_in_grid=True)
        parts = [model(tokens[:, :4], neighbors[:, :1], padding=padding, cache=cache)]
        for place in range(4, 11):
            found = neighbors[:, 1:] if cache.completed(1) == [1, 1, 1] else None
            parts.append(model(tokens[:, place : place + 1], found, cache=cache))
    for row, first in enumerate(padding.tolist()):
        torch.testing.assert_close(torch.cat(parts, 1)[row, first:], whole[row, first:], rtol=1e-10, atol=1e-10)


def test_the_caller_is_told_which_chunks_a_call_completes() -> None:
    batch = Batch(small_model(), [9, 6, 5])
    cache = batch.model.empty_cache()
    assert cache.completed(8, [0, 3, 4]) == [2, 1, 1]
    batch.read(cache, 8)
    assert [cache.completed(count) for count in (1, 3, 4, 8)] == [[0, 0, 0], [0, 1, 0], [1, 1, 1], [2, 2, 2]]


def test_tokens_that_have_completed_a_chunk_are_not_forgotten() -> None:
    batch = Batch(small_model(), [10])
    cache = batch.model.empty_cache()
    batch.read(cache, 10)
    cache.truncate(8)
    with pytest.raises(ValueError, match=r"8 tokens can't be cut to 7, back over the end of a chunk"):
        cache.truncate(7)
    with pytest.raises(ValueError, match=r"8 tokens can't be cut to 9"):
        cache.truncate(9)


def test_caches_with_padding_in_chunks_are_not_moved() -> None:
    model = small_model()
    caches = [model.empty_cache(padding_in_grid=True) for _ in range(2)]
    with torch.no_grad():
        for length, cache in enumerate(caches, 2):
            model(random_tokens(1, length), cache=cache)
    with pytest.raises(ValueError, match="equally long"):
        Cache.join(caches)


class NaiveWindows(NaiveRetro):
    """The naive model of one sequence, in which any token may be the first that attends to new neighbors."""

    def read(self, tokens: list[int], arrivals: dict[int, list[list[int]]]) -> Tensor:
        """States of the tokens, given the neighbors that arrive with each token, a list of their real tokens."""
        self.documents, m = [0] * len(tokens), self.model.chunk_length
        self.arrivals = sorted(arrivals)
        states = [self.weights["embedding.weight"][token] for token in tokens]
        encoded: list[list[Vectors]] | None = None
        for p in range(1, self.size.layers + 1):
            layer = f"layers.{p - 1}"
            states = self.residual(f"{layer}.attention", states, self.relative_attention)
            if p in self.size.cca_layers:
                if encoded is None:
                    encoded = [
                        [self.encode(one, states[max(0, at + 1 - m) : at + 1]) for one in arrivals[at] if one]
                        for at in self.arrivals
                    ]
                states = self.residual(
                    f"{layer}.cca", states, lambda name, inputs, e=encoded: self.window_attention(name, inputs, e)
                )
            states = self.residual(f"{layer}.feed_forward", states, self.feed_forward)
        return torch.stack([self.norm("norm", state) for state in states])

    def encoder_cross_attention(self, name: str, states: Vectors, chunk: Vectors) -> Vectors:
        """The last token of a window is its m-th, however short the window is."""
        query = self.weights[f"{name}.query.weight"]
        key, value = self.weights[f"{name}.key_value.weight"].chunk(2)
        first = self.model.chunk_length - len(chunk)
        return [
            self.attend(name, query, key, value, state, [(h, i_ - i) for i, h in enumerate(chunk, start=first)])
            for i_, state in enumerate(states)
        ]

    def window_attention(self, name: str, states: Vectors, encoded: list[list[Vectors]]) -> Vectors:
        """CCA to the last neighbors, by the m tokens from the one on with which they came."""
        name, m = f"{name}.attention", self.model.chunk_length
        query = self.weights[f"{name}.query.weight"]
        key, value = self.weights[f"{name}.key_value.weight"].chunk(2)
        changes = [torch.zeros_like(state) for state in states]
        for token, state in enumerate(states):
            before = [number for number, at in enumerate(self.arrivals) if at <= token]
            if not before or (i := token - self.arrivals[before[-1]]) >= m:
                continue
            others = [(h, i - i_ + m - 1) for of_one in encoded[before[-1]] for i_, h in enumerate(of_one)]
            if others:
                changes[token] = self.attend(name, query, key, value, state, others)
        return changes


@given(st.data(), st.sampled_from(["transformer_xl", "rotary"]))
@settings(max_examples=12)
def test_windows_retrieve_at_any_token(data: st.DataObject, positions: str) -> None:
    """Before, between and behind chunks; in calls of several tokens; for some of the sequences."""
    size, choices = small_size(), small_choices(chunk_length=3, positions=positions)
    model, k, r = small_model(size, choices), 2, 4
    padding = torch.tensor([0, data.draw(st.integers(1, 4))])
    tokens, cache = random_tokens(2, 14), model.empty_cache()
    arrivals: list[dict[int, list[list[int]]]] = [{}, {}]
    hidden = []
    while (start := cache.length) < tokens.shape[1]:
        count = min(14 - start, data.draw(st.integers(1 if start else 5, 6 if start else 9)))
        windows = data.draw(st.none() | st.lists(st.booleans(), min_size=2, max_size=2)) if start else None
        places = (
            cache.chunk_ends(count, padding.tolist())
            if windows is None
            else [[start] if retrieves else [] for retrieves in windows]
        )
        neighbors = random_tokens(2, max(1, *map(len, places)), k, r, seed=start)
        real = random_tokens(*neighbors.shape[:3], seed=start + 1) % (r + 1)
        for row, of_row in enumerate(places):
            for number, place in enumerate(of_row):
                found = zip(neighbors[row, number].tolist(), real[row, number].tolist(), strict=True)
                arrivals[row][place - int(padding[row])] = [one[:length] for one, length in found]
        with torch.no_grad():
            given = None if start else padding
            next_tokens = tokens[:, start : start + count]
            hidden.append(model(next_tokens, neighbors, real, padding=given, cache=cache, windows=windows))
    for row, pad in enumerate(padding.tolist()):
        with torch.no_grad():
            naive = NaiveWindows(dict(model.named_parameters()), size, choices)
            slow = naive.read(tokens[row, pad:].tolist(), arrivals[row])
        torch.testing.assert_close(torch.cat(hidden, 1)[row, pad:], slow, rtol=1e-10, atol=1e-10)


def test_what_a_cache_cannot_take_is_refused() -> None:
    model, masked = small_model(), small_model(model=small_choices(document_masks=True))
    tokens, cache = random_tokens(2, 4), model.empty_cache()
    given: dict[str, Any] = {"cache": cache}
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"neighbors \[2, 1 or more, k, r\]"):
            model(tokens, random_tokens(2, 0, 2, 8), **given)
        with pytest.raises(ValueError, match="one document"):
            masked(tokens, documents=torch.zeros_like(tokens), cache=masked.empty_cache())
        model(tokens, **given)
        with pytest.raises(ValueError, match="2 sequences, not 1"):
            model(tokens[:1], **given)
        with pytest.raises(ValueError, match="as many windows, not 1"):
            model(tokens, random_tokens(2, 1, 2, 8), windows=[True], **given)
        with pytest.raises(ValueError, match="need neighbors"):
            model(tokens, windows=[True, False], **given)
        model(tokens, random_tokens(2, 1, 2, 8), windows=[True, False], **given)
        with pytest.raises(ValueError, match=r"one shape \[k, r\], \[2, 8\], not \[1, 8\]"):
            model(tokens, random_tokens(2, 1, 1, 8), **given)
        with pytest.raises(ValueError, match="first call"):
            model(tokens, padding=torch.zeros(2, dtype=torch.int64), **given)
    with pytest.raises(ValueError, match="no_grad"):
        model(tokens, **given)
