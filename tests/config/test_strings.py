"""Settings that take text have the text that the user typed."""

import os
import shlex
from operator import attrgetter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from retro_lab.config.arguments import complete, with_prompt
from retro_lab.config.compose import compose
from retro_lab.config.strings import as_typed, shell_override
from retro_lab.errors import ConfigurationError

LOCAL = "corpus=local"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("corpus.path", "2024_01_05"),
        ("corpus.path", "1e3"),
        ("corpus.path", "été #1 [a].jsonl"),
        ("corpus.path", "it's\\"),
        ("corpus.path", "a=b"),
        ("name", "1e3"),
        ("name", "true"),
        ("index.search", "nprobe=32,k_factor_rf=4"),
        ("index.factory", "IVF256,Flat"),
        ("index.factory", "OPQ64_128,IVF256_HNSW32,PQ64x4fs,Refine(SQ8)"),
    ],
)
def test_text_stays_as_typed(key: str, value: str) -> None:
    assert attrgetter(key)(compose(["corpus=local", "corpus.path=x", f"{key}={value}"])) == value


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="$,'\"~()"), min_size=1).map(str.strip)
)
def test_any_text_stays_as_typed(value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if value.lower() in ("null", "???", ""):  # null in any case is Hydra's
        return
    [typed] = as_typed([f"corpus.path={value}"])
    [parsed] = OverridesParser.create().parse_overrides([typed])
    assert str(getattr(parsed.value(), "text", parsed.value())) == value


def test_what_is_no_text_or_quoted_already_is_left_alone() -> None:
    given = ["retrieval.k=1e3", "name=null", "corpus.path='a,b'", 'corpus.path="7"', "size=172m", "index.factory=Flat"]
    assert as_typed(given) == given


def test_the_home_folder_may_be_written_short() -> None:
    home = os.path.expanduser("~")
    assert compose([LOCAL, "corpus.path=~/x.txt"]).corpus.path == f"{home}/x.txt"
    assert compose([LOCAL, "corpus.path=~x"]).corpus.path == "~x"


def test_a_multirun_has_several_texts() -> None:
    given = ["index.search=nprobe=32,nprobe=64", "name=2024_01,b", "index.factory=Flat,auto", "name=choice(1,2)"]
    assert as_typed(given, multirun=True) == [
        "index.search='nprobe=32','nprobe=64'", "name='2024_01',b", "index.factory=Flat,auto", "name=choice(1,2)",
    ]  # fmt: skip
    assert any("'nprobe=64'" in text for text in complete(["-m", "task=build", "index.search=auto,nprobe=64"]))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("corpus.path=a,b", "corpus.path", "a,b"),
        ("corpus.path=a,$b", "corpus.path", "a,$b"),
        ("evaluation.k=0,4", "evaluation.k", [0, 4]),
        ("logger.wandb.project=é", "logger", "é"),
    ],
)
def test_the_override_that_an_error_suggests_works_as_it_stands_in_a_shell(
    override: str, key: str, value: object
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose([LOCAL, "corpus.path=x", override])
    suggested = str(caught.value).rpartition("give ")[2] if "give " in str(caught.value) else ""
    suggested = suggested or str(caught.value).rpartition("given as ")[2]
    [argument] = shlex.split(suggested.removesuffix("."))
    found = attrgetter(key)(compose([LOCAL, "corpus.path=x", argument]))
    assert (found["wandb"]["project"] if key == "logger" else found) == value


def test_a_suggestion_can_be_read() -> None:
    assert shell_override("corpus.path", "a,b") == '''"corpus.path='a,b'"'''


@example("a, 'b' \"c\" {d: [e]} ${f} \\${g} \\\\${h} $(i)=j ~k\n\tl\\")
@example("")
@example(" two leading and trailing  ")
@example("null")
@example("été 漢字 🙂")
@given(st.text("\\${}'\",:[]()=~ \n\t?aé") | st.text())
def test_a_prompt_is_the_text_that_stands_in_the_argument(prompt: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if prompt == "???":
        return
    [override] = as_typed(with_prompt(["task=generate", f"prompt={prompt}"])[1:])
    [parsed] = OverridesParser.create().parse_overrides([override])
    # What the configuration makes of the value, in which `${` begins a reference.
    config = OmegaConf.create({parsed.key_or_group: parsed.value()})
    assert OmegaConf.to_object(config) == {"task.prompt": prompt}


def test_a_prompt_in_a_multirun_has_no_commas_that_separate_values() -> None:
    filled = complete(["-m", "task=generate", "prompt=a,b", "task.k=0,1"])
    assert "task.prompt='a,b'" in filled


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["task=generate", "prompt=???"], r"prompt=\?\?\? .*missing.*"),
        (["task=evaluate", "prompt=a"], r"prompt=TEXT .*task=generate.*"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{sentence}$"):
        with_prompt(overrides)
