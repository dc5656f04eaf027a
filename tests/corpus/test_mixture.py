import json
from collections import Counter

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from written_files import read_all, write_lines

from retro_lab.corpus.sources.local import LocalSource
from retro_lab.corpus.sources.mixture import MixtureSource
from retro_lab.errors import ConfigurationError


@pytest.fixture
def sources(tmp_path):
    """Three corpora: many short documents, few long ones, and a small one."""
    write_lines(tmp_path / "short.jsonl", *({"text": f"{n:010d}"} for n in range(5000)))
    write_lines(tmp_path / "long.jsonl", *({"text": f"{n:0500d}"} for n in range(100)))
    write_lines(tmp_path / "small.jsonl", *({"text": f"{n:010d}"} for n in range(5)))
    return {name: LocalSource(str(tmp_path / f"{name}.jsonl")) for name in ("short", "long", "small")}


def bytes_by_source(mixture):
    """Bytes of text that each source contributed."""
    counts = Counter()
    for _, document in read_all(mixture):
        counts[document.source] += len(document.text)
    return counts


def test_weights_are_shares_of_text_not_of_documents(sources):
    del sources["small"]
    mixture = MixtureSource(sources, {"short": 3, "long": 1}, max_bytes=40_000)
    assert bytes_by_source(mixture) == {"short": 30_000, "long": 10_000}


def test_a_source_that_is_too_small_gives_all_it_has_once(sources):
    mixture = MixtureSource(sources, {"short": 1, "long": 1, "small": 1}, max_bytes=30_000)
    assert bytes_by_source(mixture) == {"short": 10_000, "long": 10_000, "small": 50}


def test_a_weight_of_zero_leaves_a_source_out_untouched(sources):
    sources["absent"] = LocalSource("no/such/file.jsonl")
    mixture = MixtureSource(sources, {"short": 0.5, "long": 0.5, "small": 0, "absent": 0}, max_bytes=2000)
    assert set(bytes_by_source(mixture)) == {"short", "long"}
    assert set(mixture.identity()["sources"]) == {"short", "long"}


def test_one_fraction_is_held_out_of_every_source(sources):
    def held_out(fraction):
        pairs = read_all(
            MixtureSource(
                sources, dict.fromkeys(sources, 1), validation_fraction=fraction, test_fraction=0.1, max_bytes=30_000
            )
        )
        return Counter((split, document.source) for split, document in pairs)

    assert not held_out(0.0)["validation", "short"]
    assert held_out(0.3)["validation", "short"] == pytest.approx(300, rel=0.3)
    assert held_out(0.3)["test", "short"] == held_out(0.0)["test", "short"] == pytest.approx(100, rel=0.3)


def test_a_mixture_may_hold_a_mixture(sources):
    inner = MixtureSource({"a": sources["short"], "b": sources["long"]}, {"a": 1, "b": 1}, max_bytes=1e9)
    outer = MixtureSource({"inner": inner, "rest": sources["short"]}, {"inner": 1, "rest": 3}, max_bytes=40_000)
    assert bytes_by_source(outer) == {"inner": 10_000, "rest": 30_000}
    capped = MixtureSource({"a": sources["short"]}, {"a": 1}, max_bytes=100).limited(outer, 1e6)
    assert bytes_by_source(capped) == {"a": 100}


def test_identity_tells_weights_and_limits_apart_but_not_their_scale(sources):
    def identity(weights, max_bytes=1e6):
        return MixtureSource(sources, dict(zip(sources, weights, strict=True)), max_bytes=max_bytes).identity()

    assert identity((1, 1, 2)) == identity((2, 2, 4)) == json.loads(json.dumps(identity((1, 1, 2))))
    assert identity((1, 1, 2)) != identity((1, 2, 1))
    assert identity((1, 1, 2)) != identity((1, 1, 2), 1e5)


def test_reading_twice_gives_the_same_and_parts_do_not_depend_on_each_other(sources):
    mixture = MixtureSource(sources, dict.fromkeys(sources, 1), max_bytes=30_000)
    once = read_all(mixture)
    backwards = [list(mixture.read(part)) for part in reversed(range(mixture.parts()))]
    assert [pair for part in reversed(backwards) for pair in part] == once
    with pytest.raises(IndexError):
        list(mixture.read(mixture.parts()))


@pytest.mark.parametrize(
    ("weights", "max_bytes", "message"),
    [
        ({"short": 1, "long": 1, "small": 1}, None, "corpus.max_bytes"),
        ({"short": 1, "long": 1}, 1e6, "small is in only one of them"),
        ({"short": 1, "long": 1, "small": 1, "new": 1}, 1e6, "new is in only one of them"),
        ({"short": 1, "long": -1, "small": 1}, 1e6, "must not be negative"),
        ({"short": 0, "long": 0, "small": 0}, 1e6, "not all of them zero"),
        ({"short": float("nan"), "long": 1, "small": 1}, 1e6, "corpus.weights"),
    ],
)
def test_what_cannot_be_mixed_is_told(sources, weights, max_bytes, message):
    with pytest.raises(ConfigurationError, match=message):
        MixtureSource(sources, weights, max_bytes=max_bytes)


def test_a_configuration_makes_it_with_its_sources(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *({"text": "x" * 10} for _ in range(100)))
    config = OmegaConf.create(
        {
            "_target_": "retro_lab.corpus.sources.mixture.MixtureSource",
            "sources": {"web": {"_target_": "retro_lab.corpus.sources.local.LocalSource", "path": str(path)}},
            "weights": {"web": 0.5},
            "max_bytes": 100.0,
        }
    )
    assert bytes_by_source(instantiate(config)) == {"web": 100}


def test_a_fraction_of_a_source_is_taken_from_all_over_it(sources):
    mixture = MixtureSource(sources, {"short": 1, "long": 1, "small": 0}, max_bytes=10_000, fractions={"short": 0.1})
    ids = [int(document.id.rpartition(":")[2]) for _, document in read_all(mixture) if document.source == "short"]
    assert len(ids) == pytest.approx(500, rel=0.15)  # its share of the bytes, as without a fraction
    assert min(ids) < 100
    assert max(ids) > 4900
    assert bytes_by_source(mixture)["long"] == 5000
    whole = MixtureSource(sources, {"short": 1, "long": 1, "small": 0}, max_bytes=10_000)
    assert mixture.identity() != whole.identity()


@pytest.mark.parametrize("fractions", [{"short": 0}, {"short": 1.5}, {"books": 0.5}])
def test_an_impossible_fraction_is_refused(sources, fractions):
    with pytest.raises(ConfigurationError, match=r"corpus\.fractions"):
        MixtureSource(sources, dict.fromkeys(sources, 1), max_bytes=1e6, fractions=fractions)
