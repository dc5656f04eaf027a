"""conf/ and docs/configuration.md repeat what the schemas say, and repeat it rightly."""

from dataclasses import dataclass, fields

import pytest
import yaml
from conf_files import COMMAND, with_all_keys, yaml_value
from configuration import difference, generated
from omegaconf import OmegaConf
from option_reference import REFERENCE

from retro_lab.config import catalog
from retro_lab.config.compose import compose

SHOWN = [
    (group, option)
    for group in catalog.groups()
    for option in catalog.options(group)
    if catalog.schema_of(group, option) and option != "massivetext_database_like"  # which shows how it differs
]


def test_files_say_what_the_schemas_say() -> None:
    differences = [difference(path, text) for path, text in generated().items() if path.read_text() != text]
    assert not differences, f"`{COMMAND}` mends these:\n" + "\n".join(differences)


@pytest.mark.parametrize(("group", "option"), SHOWN)
def test_an_options_file_shows_every_key_that_the_option_has(group: str, option: str) -> None:
    schema = catalog.schema_of(group, option)
    content = yaml.safe_load(catalog.options(group)[option].read_text())
    shown = content[group] if group in content and isinstance(content[group], dict) else content
    assert schema is not None
    assert shown.keys() - {"defaults"} == {entry.name for entry in fields(schema)}


def test_the_reference_has_every_key_and_every_option() -> None:
    text = REFERENCE.read_text()
    keys = [key for key in catalog.all_settings() if "._" not in key and key not in catalog.FREE_GROUPS]
    assert [key for key in keys if f"| `{key}` |" not in text] == []
    options = [(group, option) for group in catalog.groups() for option in catalog.options(group)]
    assert [
        pair for pair in options if f"| `{pair[1]}` | {catalog.describe(catalog.options(pair[0])[pair[1]])}" not in text
    ] == []


def test_a_size_brings_values_for_other_groups_and_retrofit_for_the_size() -> None:
    config = compose(["+experiment=paper_172m", "size=7_5b"])
    assert (config.optimizer.lr, config.data.batch_size) == (1e-4, 1024)
    config = compose(["+experiment=paper_172m", "init=retrofit", "size=7_5b"])
    assert (config.optimizer.lr, config.data.batch_size, config.schedule.tokens) == (1e-4, 256, 12_288_000_000)


@dataclass
class Example:
    """A schema."""

    own: int = 1
    """What the option decides."""
    other: float | None = None
    """What it leaves as it is, which takes more words: so many that they do not fit on one line of a hundred and twenty
    columns."""


OPTION = """\
# An option.
defaults:
  - example_schema
  - _self_

own: 2  # a remark
"""


def test_an_option_keeps_its_own_values_and_remarks() -> None:
    text = with_all_keys(OPTION, "example", Example)
    assert text.startswith(OPTION.replace("\nown", "\n# What the option decides.\nown"))
    assert "do not fit on one line of a hundred and twenty\n# columns.\nother: null\n" in text
    assert with_all_keys(text, "example", Example) == text


def test_what_follows_the_divider_is_written_anew() -> None:
    text = with_all_keys(OPTION, "example", Example)
    assert with_all_keys(text.replace("other: null", "other: 3"), "example", Example) == text
    assert "own: 3  # a remark" in with_all_keys(text.replace("own: 2", "own: 3"), "example", Example)


def test_a_key_that_no_schema_knows_is_left_to_be_refused() -> None:
    assert "\nonw: 2\n" in with_all_keys(OPTION.replace("own: 2  # a remark", "onw: 2"), "example", Example)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-6, "1e-6"),
        (0.0002, "2e-4"),
        (0.8, "0.8"),
        (10_000.0, "1e4"),
        (419_430_400_000, "419_430_400_000"),
        (1728, "1728"),
        (None, "null"),
        (["**/*.py"], "['**/*.py']"),
        ([0.9, 0.95], "[0.9, 0.95]"),
        ("???", "???"),
        ("1", "'1'"),
    ],
)
def test_values_are_written_as_a_person_would(value: object, text: str) -> None:
    assert yaml_value(value) == text
    assert OmegaConf.create(f"key: {text}")._get_node("key")._value() == value  # type: ignore[union-attr]
