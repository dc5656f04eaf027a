"""What is drawn, and from which tokens, against a plain reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_lab.errors import ConfigurationError
from retro_lab.generation.sampling import Sampling, drawn


def plain(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """Walk down the tokens from the likeliest one, and stop as soon as there are enough."""
    weights = [np.exp((logit - max(logits)) / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda token: -weights[token])[: top_k or len(logits)]
    whole, kept, mass = sum(weights[token] for token in order), [], 0.0
    for token in order:
        kept.append(token)
        mass += weights[token] / whole
        if top_p is not None and mass >= top_p:
            break
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(logits))]


@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=12, unique=True),
    st.floats(0.2, 5),
    st.none() | st.integers(1, 14),
    st.none() | st.floats(0.01, 1),
)
@settings(max_examples=150)
def test_tokens_are_drawn_from_the_smallest_set_with_enough_probability(fifths, temperature, top_k, top_p):
    logits = [number / 5 for number in fifths]
    expected = plain(logits, temperature, top_k, top_p)
    mass = np.sort(plain(logits, temperature, top_k, None))[::-1].cumsum()
    if top_p is not None and (np.abs(mass - top_p) < 1e-9).any():
        return  # a last bit decides
    found = Sampling(temperature, top_k, top_p).probabilities(torch.tensor([logits], dtype=torch.float64))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-9)


def test_a_temperature_of_zero_takes_the_likeliest_token():
    logits = torch.tensor([[0.0, 3.0, 2.9], [5.0, 1.0, 5.1]])
    assert Sampling().choose(logits, []).tolist() == [1, 2]
    assert Sampling().probabilities(logits).tolist() == [[0, 1, 0], [0, 0, 1]]


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]]).repeat(4000, 1)
    draws = Sampling(1.0, seed=3).draws(0)
    shares = np.bincount(drawn(probabilities, [draws] * 4000).numpy(), minlength=6) / 4000
    expected = probabilities[0].numpy()
    assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / 4000)).all()


@pytest.mark.parametrize("edge", [0.0, np.nextafter(1, 0)])
def test_a_token_without_probability_is_never_drawn(edge):
    class Edge:
        def random(self):
            return edge

    rows = torch.tensor([[0.0, 0.1, 0.7, 0.0], [0.0, 0.3, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]])
    tokens = drawn(rows, [Edge()] * 3)
    assert (rows[torch.arange(3), tokens] > 0).all()


def test_a_text_has_draws_of_its_own():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(1.0, seed=5)
    together = sampling.choose(logits, [sampling.draws(number) for number in range(3)])
    alone = [sampling.choose(logits[number : number + 1], [sampling.draws(number)]).item() for number in range(3)]
    assert together.tolist() == alone
    same = [sampling.choose(logits[:1], [sampling.draws(number)]).item() for number in range(20)]
    other = [Sampling(1.0, seed=6).choose(logits[:1], [Sampling(1.0, seed=6).draws(n)]).item() for n in range(20)]
    assert len(set(same)) > 1
    assert same != other


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -1}, "temperature must be 0 or more, not -1."),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"temperature": 1, "top_k": 0}, "top_k must be positive"),
        ({"temperature": 1, "top_p": 1.5}, "top_p is a share, above 0 and up to 1, not 1.5."),
        ({"top_p": 0.9}, "top_p=0.9 chooses among tokens that are drawn"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_what_cannot_be_is_refused(settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        Sampling(**settings)
