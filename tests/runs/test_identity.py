"""A folder is resumed only by the run that it belongs to, and one that cannot say so is told in a sentence."""

from pathlib import Path

import pytest

from retro_lab.errors import ArtifactError, ConfigurationError
from retro_lab.runs.identity import IDENTITY_NAME, check_identity


@pytest.mark.parametrize("content", [b"", b'{"seed": 1', b"[]", b"null", b"\xff\xfe\x00"])
def test_a_damaged_identity_is_told_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / IDENTITY_NAME
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        check_identity(tmp_path, {"seed": 1})
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} cannot be read (")
    assert sentence.endswith("or give this run a name of its own with name=NAME.")
    assert "\n" not in sentence


def test_only_what_is_wanted_is_compared(tmp_path: Path) -> None:
    check_identity(tmp_path, {"seed": 2})  # nothing there yet
    (tmp_path / IDENTITY_NAME).write_text('{"seed": 1, "size": {"width": 16}}', encoding="utf-8")
    check_identity(tmp_path, {"size": {"width": 16}})
    with pytest.raises(ConfigurationError, match=r"other settings \(seed: 1 -> 2\); give this run a name"):
        check_identity(tmp_path, {"seed": 2})
