"""What a user relies on: builds resume, are reused, never half-written, never silently damaged."""

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from squares import CombinedSquares, Squares

from retro_lab.artifacts.fingerprint import canonical_json, differences, fingerprint
from retro_lab.artifacts.manifest import Manifest
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.errors import ArtifactError

SCRIPT = Path(__file__).with_name("squares.py")
NOBODY = "-1"


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "artifacts")


def start(root, log, die_in=NOBODY, pause="0"):
    return subprocess.Popen([sys.executable, SCRIPT, root, log, die_in, pause], stderr=subprocess.DEVNULL)


def files_of(artifact):
    return {name: record.sha256 for name, record in artifact.manifest.files.items()}


def test_builds_once_and_then_reuses(store, tmp_path, capsys):
    log = tmp_path / "log"
    first = store.build(Squares(log=log))
    assert first.facts == {"sum": 0 + 1 + 4 + 9}
    assert first.array("00002/square.npy")[0] == 4
    second = store.build(Squares(log=log))
    assert second.folder == first.folder
    assert log.read_text().split() == ["0", "1", "2", "3"]
    assert "reusing" in capsys.readouterr().err


def test_arrays_are_read_only(store):
    array = store.build(Squares()).array("00001/square.npy")
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 7


def test_a_changed_setting_builds_anew_and_says_why(store, capsys):
    first = store.build(Squares())
    second = ArtifactStore(store.root).build(Squares(version_note="b"))
    assert second.folder != first.folder
    assert "because note: 'a' -> 'b'" in " ".join(capsys.readouterr().err.split())


def test_another_version_of_a_library_builds_anew_and_says_so(store, monkeypatch, capsys):
    class Counted(Squares):
        def libraries(self):
            return {"faiss": 2}

    monkeypatch.setattr(faiss, "__version__", "1.8.0")
    first = store.build(Counted())
    monkeypatch.setattr(faiss, "__version__", "1.9.1")
    assert ArtifactStore(store.root).build(Counted()).folder != first.folder
    assert "because faiss: '1.8' -> '1.9'" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(faiss, "__version__", "1.9.2")  # no part of the version that counts
    ArtifactStore(store.root).build(Counted())
    assert "building" not in capsys.readouterr().err


@pytest.mark.parametrize("changes", [1, 3, 4])
def test_an_unrelated_artifact_is_no_reason(store, capsys, monkeypatch, changes):
    settings = Squares.settings
    for value in (1, 2):
        changed = dict.fromkeys("abcd"[:changes], value)
        monkeypatch.setattr(Squares, "settings", lambda self, changed=changed: settings(self) | changed)
        ArtifactStore(store.root).build(Squares())
    said = capsys.readouterr().err
    assert ("because a: 1 -> 2" in said) == (changes <= 3)
    assert said.count(": 1 -> 2") == (changes if changes <= 3 else 0)


def test_artifacts_side_by_side_are_no_reason_for_each_other(store, capsys):
    store.build(Squares())
    store.build(Squares(version_note="b"))
    assert "because" not in capsys.readouterr().err


def test_combined_files_take_the_place_of_shards(store):
    artifact = store.build(CombinedSquares())
    assert sorted(path.name for path in artifact.folder.iterdir()) == ["manifest.json", "squares.npy"]
    assert artifact.array("squares.npy").tolist() == [0, 1, 4, 9]


@pytest.mark.parametrize("die_in", range(6))
def test_killed_build_resumes_and_ends_with_the_same_bytes(tmp_path, die_in):
    undisturbed = ArtifactStore(tmp_path / "undisturbed").build(Squares(count=6))
    log, root = tmp_path / "log", tmp_path / "artifacts"
    assert start(root, log, die_in=str(die_in)).wait() == -signal.SIGKILL
    assert ArtifactStore(root).find(Squares(count=6)) is None, "a killed build must not count as finished"
    resumed = ArtifactStore(root).build(Squares(count=6, log=log))
    assert files_of(resumed) == files_of(undisturbed)
    assert log.read_text().split() == ["0", "1", "2", "3", "4", "5"], "finished shards are not built again"
    assert not list(resumed.folder.glob(".*"))


def test_processes_share_the_shards_and_none_is_built_twice(tmp_path):
    log, root = tmp_path / "log", tmp_path / "artifacts"
    builders = [start(root, log, pause="0.2") for _ in range(3)]
    assert [builder.wait() for builder in builders] == [0, 0, 0]
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3", "4", "5"]
    assert ArtifactStore(root).find(Squares(count=6)).facts == {"sum": 55}


def write_with_python(path):
    with path.open("wb", buffering=0) as file:
        file.write(b"x")


def write_with_numpy(path):
    # Said of an array of which a part was written; for one of which nothing was, NumPy gives the system's error.
    raise OSError("98304 requested and 65472 written")


def write_with_arrow(path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x" * 10**6]}), path)


def write_with_faiss(path):
    index = faiss.IndexFlatL2(2)
    index.add(np.zeros((10**5, 2), np.float32))
    faiss.write_index(index, str(path))


@pytest.mark.parametrize("write", [write_with_python, write_with_numpy, write_with_arrow, write_with_faiss])
def test_full_disk_keeps_finished_shards_and_leaves_nothing_half_written(store, tmp_path, write):
    log, device = tmp_path / "log", tmp_path / "full"
    device.symlink_to("/dev/full")  # a link, because Arrow removes what it could not write
    with pytest.raises((OSError, RuntimeError)) as caught:
        write(device)
    full = caught.value
    with pytest.raises(ArtifactError, match=r"disk is full .* squares"):
        store.build(Squares(log=log, fail_in=2, error=full))
    assert not list(store.root.rglob("half.npy"))
    assert store.build(Squares(log=log)).facts == {"sum": 14}
    assert log.read_text().split() == ["0", "1", "2", "3"]


def test_folder_that_cannot_be_written_is_named(store):
    with pytest.raises(ArtifactError, match=r"paths\.artifacts"):
        store.build(Squares(fail_in=0, error=OSError(errno.EROFS, "Read-only file system", str(store.root))))


@pytest.mark.parametrize("damage", ["truncate", "remove", "enlarge"])
def test_a_file_of_another_size_is_noticed_on_opening(store, damage):
    artifact = store.build(Squares())
    path = artifact.folder / "00001" / "square.npy"
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "truncate" else path.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match=str(path)):
        store.build(Squares())


@given(st.data())
def test_any_flipped_bit_is_found(tmp_path_factory, data):
    artifact = ArtifactStore(tmp_path_factory.mktemp("flip")).build(Squares())
    name = data.draw(st.sampled_from(sorted(artifact.manifest.files)))
    path = artifact.folder / name
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert artifact.manifest.damaged_files(artifact.folder) == [name]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 0}'])
def test_a_manifest_that_cannot_be_read_is_named(store, content):
    folder = store.build(Squares()).folder
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json.*build it again"):
        store.find(Squares())


def test_manifest_holds_recipe_and_sizes(store):
    artifact = store.build(Squares())
    content = json.loads((artifact.folder / "manifest.json").read_text())
    assert content["recipe"]["settings"] == {"count": 4, "note": "a"}
    assert content["files"]["00003/square.npy"]["size"] == (artifact.folder / "00003/square.npy").stat().st_size
    assert Manifest.read(artifact.folder) == artifact.manifest


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values))
def test_fingerprint_does_not_depend_on_the_order_of_keys(recipe):
    backwards = dict(reversed(recipe.items()))
    assert fingerprint(recipe) == fingerprint(backwards)
    assert differences(recipe, backwards) == []


@given(st.dictionaries(st.text(), json_values), st.dictionaries(st.text(), json_values))
def test_equal_fingerprints_mean_equal_recipes(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (canonical_json(one) == canonical_json(other))


def test_nan_has_no_fingerprint():
    with pytest.raises(ValueError, match="JSON"):
        fingerprint({"value": np.nan})
