"""The real stages under kills, a full disk, other builders, damaged files: what is built in the end is the same."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pipeline
import pytest
from disturbed_builds import build_all, build_announced, checksums

from retro_lab.artifacts.manifest import MANIFEST_NAME, Manifest
from retro_lab.artifacts.on_ray import RayWorkers
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.errors import ArtifactError
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks import verify

STAGES = (
    "documents",
    "near_copies",
    "deduplication",
    "held_out",
    "decontamination",
    "tokenizer",
    "tokens",
    "embeddings",
    "index",
    "search",
    "neighbors",
)
KILLS = 10
# A process that has imported all that takes long and started no thread yet, so that its children begin at once.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "retro_lab.tasks.build", "transformers.models.bert.modeling_bert"])


class Builder:
    """A process that builds everything, and what it says of where it is."""

    def __init__(self, root, bert):
        self._receiver, sender = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=build_announced, args=(root, bert, sender))
        self.process.start()
        sender.close()

    def artifacts(self):
        """Yield the folder of each artifact, relative to the root, when it begins with it."""
        with suppress(EOFError):
            while True:
                yield self._receiver.recv()

    def wait_for(self, artifact):
        assert artifact in self.artifacts()

    def kill(self):
        self.process.kill()
        self.process.join()

    def exit_code(self):
        self.process.join()
        return self.process.exitcode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_bert):
    """Folder of an undisturbed build, its checksums, and the seconds that each artifact took; built once."""
    root = tmp_path_factory.mktemp("undisturbed")
    builder = Builder(root, tiny_bert)
    begun = [(artifact, time.monotonic()) for artifact in builder.artifacts()]
    assert builder.exit_code() == 0
    ends = [*(start for _, start in begun[1:]), time.monotonic()]
    return root, checksums(root), {name: end - start for (name, start), end in zip(begun, ends, strict=True)}


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_ten_random_moments(tmp_path, tiny_bert, undisturbed, stage):
    whole, expected, seconds = undisturbed
    root = shutil.copytree(whole, tmp_path / "artifacts")
    draw = random.Random(stage)
    artifacts = [name for name in seconds if name.startswith(f"{stage}/")]
    interrupted = 0
    while interrupted < KILLS:
        artifact = draw.choice(artifacts)
        shutil.rmtree(root / artifact)
        builder = Builder(root, tiny_bert)
        builder.wait_for(artifact)
        time.sleep(draw.uniform(0, seconds[artifact]))
        builder.kill()
        interrupted += not (root / artifact / MANIFEST_NAME).is_file()  # or else it was too late, and once more
        build_all(root, tiny_bert)
        assert checksums(root) == expected
        assert not list(root.rglob("*.tmp"))


@pytest.mark.parametrize(("count", "killed"), [(2, False), (2, True), (4, True)])
def test_builders_of_which_one_is_killed_and_comes_back(tmp_path, tiny_bert, undisturbed, count, killed):
    _, expected, seconds = undisturbed
    draw = random.Random(count)
    builders = [Builder(tmp_path, tiny_bert) for _ in range(count)]
    if killed:
        builders[0].wait_for(draw.choice(list(seconds)))
        builders[0].kill()
        builders[0] = Builder(tmp_path, tiny_bert)
    assert [builder.exit_code() for builder in builders] == [0] * count
    assert checksums(tmp_path) == expected
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("kills", [(), ("documents", "embeddings", "search")])
def test_workers_of_ray_of_which_some_are_killed(tmp_path, tiny_bert, undisturbed, ray_workers, monkeypatch, kills):
    """A worker is killed in a shard of each stage that is named, so another one has to build it."""

    class Disturbed(ArtifactStore):
        def build(self, stage):
            killer = Thread(target=kill_a_worker) if stage.name in left else None
            if killer:
                left.remove(stage.name)
                killer.start()
            artifact = super().build(stage)
            if killer:
                killer.join()
            return artifact

    left = list(kills)
    monkeypatch.setattr(pipeline, "ArtifactStore", lambda folder: Disturbed(folder, ray_workers))
    build_all(tmp_path, tiny_bert)
    assert checksums(tmp_path) == undisturbed[1]
    assert not left
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.fixture(scope="module")
def ray_workers():
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        found = RayWorkers("local", 2, 1)
        yield found
        found.close()


def kill_a_worker():
    """Kill one of this process's workers of Ray at work, whose title says what it does."""
    for _ in range(3000):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if path.read_bytes().startswith(b"ray::Worker.build") and descends(int(path.parent.name)):
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    return
        time.sleep(0.01)
    pytest.fail("no worker came to work")


def descends(process):
    """Return whether a process was started by this one, or by one that it started."""
    while process > 1 and process != os.getpid():
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == os.getpid()


def test_a_disk_that_is_full_again_and_again(tmp_path, tiny_bert, undisturbed):
    script = Path(__file__).with_name("disturbed_builds.py")
    mount = f"mount -t tmpfs -o size=4k none {tmp_path} && exec {sys.executable} {script} {tmp_path} {tiny_bert}"
    isolated = ["unshare", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*isolated, "mount", "-t", "tmpfs", "none", tmp_path]).returncode
    ):
        pytest.skip("a disk of one's own cannot be mounted here")
    done = subprocess.run([*isolated, "sh", "-c", mount], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert all("disk is full" in error for error in outcome["errors"]), outcome["errors"]
    met = {stage for stage in STAGES for error in outcome["errors"] if f"building {stage};" in error}
    assert len(met) >= 5, met
    assert outcome["checksums"] == undisturbed[1]


def every_file(root):
    for folder in ArtifactStore(root).artifacts():
        yield from ((folder, name) for name in (*Manifest.read(folder).files, MANIFEST_NAME))


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_verify_finds_every_damaged_file_in_every_artifact(undisturbed, damage):
    root = undisturbed[0]
    config = SimpleNamespace(paths=SimpleNamespace(artifacts=str(root)))
    draw = random.Random(2)
    files = list(every_file(root))
    assert {folder.parent.name for folder, _ in files} == set(STAGES)
    verify.run(config, RunFolder(root))
    for folder, name in files:
        path = folder / name
        content = path.read_bytes()
        place = draw.randrange(len(content))
        flipped = content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
        path.write_bytes(content[:place] if damage == "truncated" else flipped)
        try:
            with pytest.raises(ArtifactError, match="1 files differ") as found:
                verify.run(config, RunFolder(root))
            assert str(path) in str(found.value)
            if damage == "truncated" or name == MANIFEST_NAME:  # known at each opening
                with pytest.raises(ArtifactError, match=str(path)):
                    Manifest.read(folder).check_sizes(folder)
        finally:
            path.write_bytes(content)


def test_an_older_manifest_is_refused_in_one_sentence(undisturbed, tmp_path):
    root = shutil.copytree(undisturbed[0], tmp_path / "older")
    for folder, name in every_file(root):
        if name == MANIFEST_NAME:
            content = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(content | {"version": 1}))
            with pytest.raises(ArtifactError, match=r"version 1 but this release reads version 2; delete .* again"):
                Manifest.read(folder)
    with pytest.raises(ArtifactError, match="files differ"):
        verify.run(SimpleNamespace(paths=SimpleNamespace(artifacts=str(root))), RunFolder(root))
