"""Whatever goes wrong at whatever moment, the finished artifact is the one of an undisturbed build."""

import ctypes
import errno
import itertools
import os
import shutil
import signal
import time
from multiprocessing import get_context

import numpy as np
import pytest
from crash_points import run_and_die
from squares import CombinedSquares, Squares

from retro_lab import ranks
from retro_lab.artifacts.arrays import create_array
from retro_lab.artifacts.manifest import Manifest
from retro_lab.artifacts.shards import sealed_files
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.errors import ArtifactError
from retro_lab.ranks import Process

STAGES = [Squares, CombinedSquares]


def files_of(artifact):
    return {name: record.sha256 for name, record in artifact.manifest.files.items()}


def on_disk(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def unforced(monkeypatch):
    """Writing without waiting for the disk, which a killed process, unlike a machine without power, does not need."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_before_each_change_to_the_disk(tmp_path, unforced, stage):
    """Every place in a build where the disk changes, one after the other, and not only those that chance would hit."""
    undisturbed = ArtifactStore(tmp_path / "undisturbed").build(stage())
    for number in itertools.count():
        store = ArtifactStore(tmp_path / f"artifacts{number}")
        status = run_and_die(number, store.root, lambda store=store: store.build(stage()))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        artifact = ArtifactStore(store.root).build(stage())
        assert files_of(artifact) == files_of(undisturbed)
        assert on_disk(artifact.folder) == on_disk(undisturbed.folder), "something was left behind"
        assert artifact.manifest.damaged_files(artifact.folder) == []
    assert number > 40


@pytest.mark.parametrize("stage", STAGES)
def test_killed_again_and_again(tmp_path, unforced, stage):
    """Each attempt goes on from where the last was stopped, the step of combining shards excepted."""
    undisturbed = ArtifactStore(tmp_path / "undisturbed").build(stage())
    store = ArtifactStore(tmp_path / "artifacts")
    statuses = []
    while not statuses or statuses[-1] != 0:
        statuses.append(run_and_die(20 + 2 * len(statuses), store.root, lambda: store.build(stage())))
        assert len(statuses) < 50
    artifact = store.build(stage())
    assert files_of(artifact) == files_of(undisturbed)
    assert on_disk(artifact.folder) == on_disk(undisturbed.folder)


def test_a_process_that_waited_does_not_build_what_was_combined_meanwhile(tmp_path):
    """The shards of a combined artifact are gone when it is finished; who looks then must not miss them."""
    log = tmp_path / "log"
    context = get_context("fork")
    builders = [
        context.Process(target=ArtifactStore(tmp_path / "artifacts").build, args=(CombinedSquares(log=log, pause=0.1),))
        for _ in range(3)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3"]
    artifact = ArtifactStore(tmp_path / "artifacts").find(CombinedSquares())
    assert on_disk(artifact.folder) == ["manifest.json", "squares.npy"]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_begin_at_different_shards_and_one_that_dies_is_replaced(tmp_path, monkeypatch, world):
    log, store = tmp_path / "log", ArtifactStore(tmp_path / "artifacts")
    context = get_context("fork")

    def start(rank, **settings):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        process = context.Process(target=store.build, args=(Squares(count=8, log=log, pause=0.2, **settings),))
        process.start()
        return process

    ranks = [start(rank) for rank in range(world - 1)] + [start(world - 1, die_in=8 * (world - 1) // world)]
    ranks[-1].join()
    assert ranks[-1].exitcode == -signal.SIGKILL
    ranks[-1] = start(world - 1)
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * world
    built = [int(line) for line in log.read_text().split()]
    assert sorted(built) == list(range(8))
    assert set(built[: world - 1]) == {8 * rank // world for rank in range(world - 1)}
    assert store.find(Squares(count=8)).facts == {"sum": 140}


def test_locks_only_spare_work(tmp_path, monkeypatch):
    """On a file system whose locks do not reach other machines, shards are built twice and nothing is wrong."""
    undisturbed = ArtifactStore(tmp_path / "undisturbed").build(Squares())
    store = ArtifactStore(tmp_path / "artifacts")

    class Overtaken(Squares):
        def write_shard(self, shard, folder, advance):
            facts = super().write_shard(shard, folder, advance)
            if self.fail_in is None:
                standing = store._folder(self) / f"{shard:05}"
                shutil.copytree(folder, standing)
                Manifest({}, facts, sealed_files(standing)).write(standing, "shard.json")
            return facts

    artifact = store.build(Overtaken())
    assert files_of(artifact) == files_of(undisturbed)
    assert on_disk(artifact.folder) == on_disk(undisturbed.folder)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    import fcntl

    def missing(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(ArtifactError, match="has no file locks"):
        ArtifactStore(tmp_path).build(Squares())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("part", ["square.npy", "shard.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_a_finished_shard_that_is_damaged_before_the_manifest_is_built_again(tmp_path, stage, part, damage):
    undisturbed = ArtifactStore(tmp_path / "undisturbed").build(stage())
    store = ArtifactStore(tmp_path / "artifacts")
    with pytest.raises(RuntimeError):
        store.build(stage(fail_in=3, error=RuntimeError("stop")))
    path = next(store.root.glob(f"*/*/00001/{part}"))
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "truncate" else content[:-1] + bytes([content[-1] ^ 1]))
    artifact = store.build(stage())
    if damage == "flip" and part == "square.npy" and stage is Squares:
        # Not looked for while building, which would read everything twice; it is known by its checksum all the same.
        assert artifact.manifest.damaged_files(artifact.folder) == ["00001/square.npy"]
    else:
        assert artifact.manifest.damaged_files(artifact.folder) == []
    assert files_of(artifact) == files_of(undisturbed)


def test_who_waits_while_another_builds_a_damaged_shard_again_waits_on(tmp_path):
    store = ArtifactStore(tmp_path / "artifacts")
    artifact = store.build(Squares())
    (artifact.folder / "manifest.json").unlink()  # all shards stand, one of them damaged
    context = get_context("fork")
    builders = [context.Process(target=store.build, args=(Squares(pause=1.0),)) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    assert files_of(store.build(Squares())) == files_of(artifact)


def test_an_artifact_that_lost_its_manifest_is_built_again(tmp_path):
    store = ArtifactStore(tmp_path)
    for stage in STAGES:
        artifact = store.build(stage())
        (artifact.folder / "manifest.json").unlink()
        assert files_of(store.build(stage())) == files_of(artifact)


@pytest.mark.parametrize("content", ["", '{"version": 1}'])
def test_a_damaged_or_older_neighbor_is_no_obstacle(tmp_path, content):
    folder = ArtifactStore(tmp_path).build(Squares()).folder
    (folder / "manifest.json").write_text(content)
    assert ArtifactStore(tmp_path).build(Squares(version_note="b")).facts == {"sum": 14}


def test_leftovers_are_removed_and_other_files_are_not(tmp_path):
    store = ArtifactStore(tmp_path)
    folder = store.build(CombinedSquares()).folder
    (folder / "00002").mkdir()
    (folder / "00002" / "square.npy").write_bytes(b"left")
    (folder / "notes.txt").write_text("mine")
    store.build(CombinedSquares())
    assert on_disk(folder) == ["manifest.json", "notes.txt", "squares.npy"]


def drop_privileges():
    """Take from root, for this process alone, the right to write what modes forbid."""
    libc = ctypes.CDLL(None)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc.capset(header, data)


def in_child(work):
    """Return what `work()` returns or raises, called in a forked process without root's privileges."""
    receiver, sender = get_context("fork").Pipe(duplex=False)

    def child():
        drop_privileges()
        try:
            sender.send(work())
        except ArtifactError as error:
            sender.send(error)

    process = get_context("fork").Process(target=child)
    process.start()
    process.join()
    return receiver.recv()


def test_a_read_only_folder_can_be_read_and_is_named_when_it_cannot_be_written(tmp_path):
    store = ArtifactStore(tmp_path / "artifacts")
    artifact = store.build(Squares())
    (artifact.folder / "00000" / "shard.json").write_text("left behind")
    folders = [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert in_child(lambda: store.build(Squares()).facts) == {"sum": 14}
        refused = in_child(lambda: store.build(Squares(version_note="b")))
        assert isinstance(refused, ArtifactError)
        assert str(store.root) in str(refused)
        assert "paths.artifacts" in str(refused)
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "artifacts").write_text("")
    with pytest.raises(ArtifactError, match=f"{tmp_path}/artifacts.* cannot be written"):
        ArtifactStore(tmp_path / "artifacts").build(Squares())


def test_a_corpus_that_cannot_be_read_is_not_taken_for_the_artifacts(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied", "/corpus.jsonl")
    with pytest.raises(PermissionError):
        ArtifactStore(tmp_path).build(Squares(fail_in=0, error=error))


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch):
    undisturbed = ArtifactStore(tmp_path / "undisturbed").build(Squares())
    now = itertools.count(4e9, -86_400)
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    log, store = tmp_path / "log", ArtifactStore(tmp_path / "artifacts")
    with pytest.raises(RuntimeError):
        store.build(Squares(log=log, fail_in=2, error=RuntimeError("stop")))
    for number, path in enumerate(sorted(store.root.rglob("*"))):
        os.utime(path, (4e9 - number, 4e9 - number) if number % 2 else (0, 0))
    artifact = store.build(Squares(log=log))
    assert log.read_text().split() == ["0", "1", "2", "3"]
    assert files_of(artifact) == files_of(undisturbed)
    assert store.build(Squares(log=log)).folder == artifact.folder


def test_an_array_takes_its_room_before_it_is_written(tmp_path, monkeypatch):
    """A full disk would otherwise end the process with SIGBUS at the first write into a hole."""
    array = create_array(tmp_path / "whole.npy", np.int32, (1000, 3))
    assert array.shape == (1000, 3)
    assert not array.any()
    assert (tmp_path / "whole.npy").stat().st_blocks * 512 >= array.nbytes

    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        create_array(tmp_path / "other.npy", np.int32, (1000, 3))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Process(0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Process(5, 8, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "3"}, Process(3, 4, 3)),
        ({"SLURM_PROCID": "1", "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, Process(2, 4, 0)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}, Process(1, 2, 1)),
    ],
)
def test_which_of_several_processes_this_is(monkeypatch, variables, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks.current() == expected


def test_jobs_of_an_array_begin_at_different_shards(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    found = set()
    for task in range(3):
        for rank in range(2):
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
            monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
            monkeypatch.setenv("SLURM_PROCID", str(rank))
            monkeypatch.setenv("SLURM_NTASKS", "2")
            found.add(round(ranks.position() * 6, 6))
    assert found == set(range(6))
