"""With a cache, RETROfit of every Hugging Face decoder gives the full pass's hidden states."""

from functools import cache

import pytest
import torch
from tiny_bases import FAMILIES, M, random_tokens, retrofitted, tiny_base
from torch import Tensor

from retro_lab.model.backbones.retrofitted import RetrofittedModel
from retro_lab.model.cache import Cache

TOKENS, NEIGHBORS = random_tokens(2, 14), random_tokens(2, 3, 2, 2 * M, seed=3)
LENGTHS = torch.tensor([[[8, 3], [0, 0], [5, 8]], [[8, 8], [1, 0], [8, 8]]])


@cache
def exact(family: str) -> RetrofittedModel:
    return retrofitted(tiny_base(family, torch.float64), opened=True)


def read(model: RetrofittedModel, past: Cache, stop: int, retrieve: bool = True, row: int | None = None) -> Tensor:
    """Read the tokens up to `stop`, with the neighbors of the chunks that they complete; all rows without padding."""
    start, rows = past.length, slice(None) if row is None else slice(row, row + 1)
    chunks = slice(start // M, stop // M)
    given = (NEIGHBORS[rows, chunks], LENGTHS[rows, chunks]) if retrieve and start // M < stop // M else ()
    return model(TOKENS[rows, start:stop], *given, cache=past)


@torch.no_grad()
@pytest.mark.parametrize("retrieve", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_are_the_full_pass(family: str, retrieve: bool) -> None:
    """One token at a time, several with the end of a chunk among them, and after rejected tokens."""
    model = exact(family)
    expected = model(TOKENS, NEIGHBORS, LENGTHS) if retrieve else model(TOKENS)
    past = model.empty_cache()
    found = [read(model, past, stop, retrieve) for stop in (5, 6)]
    past.truncate(5)
    model(TOKENS[:, 8:9], cache=past)  # a draft
    past.truncate(5)
    found += [read(model, past, stop, retrieve) for stop in (6, 7, 8, 14)]
    # Some take the softmax, or all of the attention, in float32.
    torch.testing.assert_close(
        torch.cat([found[0], *found[2:]], 1),
        expected,
        rtol=0,
        atol=1e-6 if family in ("gemma2", "gpt_neo", "gptj") else 1e-10,
    )


@torch.no_grad()
@pytest.mark.parametrize("family", ["falcon with ALiBi, not parallel", "gpt2", "llama", "mistral", "opt"])
def test_rows_of_unequal_length_join_and_change_places(family: str) -> None:
    model = exact(family)
    expected = model(TOKENS, NEIGHBORS, LENGTHS)
    long, short = model.empty_cache(), model.empty_cache()
    read(model, long, 10, row=0)
    read(model, short, 7, row=1)
    both = Cache.join([long, short])
    both.select([1, 0])
    neighbors, lengths = (t[[1, 0], torch.tensor([1, 2])][:, None] for t in (NEIGHBORS, LENGTHS))
    for step in range(4):
        tokens = torch.stack([TOKENS[1, 7 + step], TOKENS[0, 10 + step]])[:, None]
        ends = [step == 0, step == 1]
        given = (neighbors, lengths * torch.tensor(ends)[:, None, None]) if any(ends) else ()
        hidden = model(tokens, *given, cache=both)
        torch.testing.assert_close(hidden[0, 0], expected[1, 7 + step], rtol=0, atol=1e-10)
        torch.testing.assert_close(hidden[1, 0], expected[0, 10 + step], rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "gpt_neox", "llama", "mistral"])
def test_windows_are_chunks_of_a_shifted_grid(family: str) -> None:
    """Windows that end M tokens apart, wherever they begin, retrieve what the chunks of a padded full pass do."""
    model, shift = exact(family), 1
    padded = torch.nn.functional.pad(TOKENS[:1], (shift, 0), value=7)
    expected = model(padded, NEIGHBORS[:1], LENGTHS[:1], padding=torch.tensor([shift]))[:, shift:]
    past = model.empty_cache()
    found = []
    for place in range(TOKENS.shape[1]):
        chunk, rest = divmod(place + shift + 1, M)
        given = (NEIGHBORS[:1, chunk - 1 : chunk], LENGTHS[:1, chunk - 1 : chunk]) if not rest else ()
        found.append(model(TOKENS[:1, place : place + 1], *given, cache=past, windows=[not rest]))
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=0, atol=1e-10)
