"""Builds whose shards Ray's workers build, on a local cluster: the same artifacts, whatever happens to the workers."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from squares import Squares

from retro_lab.artifacts.on_ray import ATTEMPTS, RayWorkers
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.errors import ArtifactError, ClusterError

pytest.importorskip("ray", reason="the extra ray is not installed")

HERE = Path(__file__).parent


class Fragile(Squares):
    """Squares of which shard `die_in` kills its worker as often as `deaths` says."""

    name = "fragile"

    def __init__(self, deaths, notes, **settings):
        super().__init__(**settings)
        self.deaths, self.notes = deaths, notes

    def write_shard(self, shard, folder, advance):
        if shard == self.die_in and len(list(self.notes.iterdir())) < self.deaths:
            (self.notes / str(os.getpid())).touch()
            return super().write_shard(shard, folder, advance)
        die_in, self.die_in = self.die_in, None
        try:
            return super().write_shard(shard, folder, advance)
        finally:
            self.die_in = die_in


@pytest.fixture(scope="module")
def workers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
        found = RayWorkers("local", 2, 1)
        yield found
        found.close()


@pytest.fixture
def store(tmp_path, workers):
    return ArtifactStore(tmp_path / "artifacts", workers)


def checksums(artifact):
    return {name: record.sha256 for name, record in artifact.manifest.files.items()}


def test_each_shard_is_built_once_by_workers_and_all_are_the_same(store, tmp_path):
    class Signed(Squares):
        def write_shard(self, shard, folder, advance):
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()}\n")
            return super().write_shard(shard, folder, advance)

    log = tmp_path / "log"
    built = store.build(Signed(count=6, log=log, pause=0.3))
    alone = ArtifactStore(tmp_path / "alone").build(Squares(count=6))
    assert checksums(built) == checksums(alone)
    lines = log.read_text().split()
    shards, processes = [line for line in lines if len(line) == 1], {line for line in lines if len(line) > 1}
    assert sorted(shards) == list("012345")
    assert len(processes) == 2
    assert str(os.getpid()) not in processes


def test_another_worker_takes_the_shard_of_a_killed_one(store, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    log = tmp_path / "log"
    built = store.build(Fragile(1, notes, count=4, die_in=1, log=log))
    assert len(list(notes.iterdir())) == 1
    assert built.facts == {"sum": 14}
    assert sorted(log.read_text().split()) == list("0123")
    assert not list(built.folder.glob(".*"))


def test_a_shard_that_kills_every_worker_ends_the_build_and_keeps_the_others(store, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    with pytest.raises(ArtifactError, match=rf"{ATTEMPTS} workers were lost .* shard 1 of fragile"):
        store.build(Fragile(100, notes, count=4, die_in=1))
    assert len(list(notes.iterdir())) == ATTEMPTS
    assert sorted(path.parent.name for path in store.root.rglob("shard.json")) == ["00000", "00002", "00003"]


def test_an_error_of_a_worker_is_the_one_that_a_process_alone_would_raise(store, tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ArtifactError, match=r"disk is full .* squares; finished shards are kept"):
        store.build(Squares(fail_in=2, error=full))


def test_other_versions_on_another_machine_are_refused(store):
    stage = Squares(version_note="x")
    stage.recipe["version"] = 7
    with pytest.raises(ArtifactError, match=r"its code: 7 -> 1.*install the same ones"):
        store.build(stage)


def test_a_shard_that_another_command_holds_is_waited_for(store, tmp_path):
    log = tmp_path / "log"
    other = subprocess.Popen([sys.executable, HERE / "squares.py", store.root, log, "-1", "0.5"])
    while not log.is_file():
        time.sleep(0.05)
    store.build(Squares(count=6, log=log))
    assert other.wait() == 0
    assert sorted(log.read_text().split()) == list("012345")


def test_an_address_without_a_cluster_is_named(tmp_path):
    with pytest.raises(ClusterError, match=r"build\.ray_address=127\.0\.0\.1:1 is no Ray cluster"):
        ArtifactStore(tmp_path, RayWorkers("127.0.0.1:1", 2, 1)).build(Squares())
