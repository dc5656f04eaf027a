"""`task=serve` refuses at once what it cannot serve; test_command_line.py serves a trained run."""

import sys
from pathlib import Path

import pytest

from retro_lab.config.compose import compose
from retro_lab.errors import ArtifactError, ConfigurationError
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks import serve


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("task.port=65536", r"^task\.port must be from 0 to 65,535, not 65536\.$"),
        ("task.max_waiting=0", r"^task\.max_waiting must be positive, not 0\.$"),
        ("task.model=gpt", r"^task\.model must be one of baseline, longer_baseline, retro, not gpt\.$"),
        ("task.host=0.0.0.0", r"^task\.host=0\.0\.0\.0 lets others [^\n]* task\.allowed_hosts\.$"),
    ],
)
def test_settings_that_make_no_server_are_refused(override: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        compose(["task=serve", override])


def test_a_server_for_a_network_has_names() -> None:
    assert compose(["task=serve", "task.host=0.0.0.0", "task.allowed_hosts=[my.server]"]).task.port == 8000


@pytest.mark.parametrize("override", ["task.port=0", "task.model=baseline"])
def test_a_run_without_the_model_cannot_be_served(tmp_path: Path, override: str) -> None:
    with pytest.raises(ArtifactError, match=r"holds no trained (model|baseline); train one with: python -m retro_lab"):
        serve.run(compose(["task=serve", override]), RunFolder(tmp_path))


@pytest.mark.parametrize("library", ["fastapi", "uvicorn"])
def test_without_the_extra_one_sentence_says_what_to_install(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigurationError, match=r"^task=serve needs the extra `serve`: pip install [^\n]*\.$"):
        serve.run(compose(["task=serve"]), RunFolder(tmp_path))
