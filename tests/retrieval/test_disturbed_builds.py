"""The real stages under kills, a full disk, other builders, damaged files: what is built in the end is the same."""

import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from disturbed_builds import build_all, build_announced, checksums
from omegaconf import OmegaConf

from retro_lab.artifacts.manifest import MANIFEST_NAME, Manifest
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.errors import ArtifactError
from retro_lab.tasks import verify

STAGES = ("documents", "tokenizer", "tokens", "embeddings", "index", "search", "neighbors")
KILLS = 10
# A process that has imported all that takes long and started no thread yet, so that its children begin at once.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["retro_lab.tasks.build", "transformers.models.bert.modeling_bert"])


class Builder:
    """A process that builds everything, and what it says of where it is."""

    def __init__(self, root, bert):
        self.stages, sender = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=build_announced, args=(root, bert, sender))
        self.process.start()
        sender.close()

    def wait_for(self, stage):
        """Wait until it begins a stage and return the folder of the artifact, or None if it never will again."""
        while True:
            name, folder = self.stages.recv()
            if name == stage or name is None:
                return folder and Path(folder)

    def kill(self):
        self.process.kill()
        self.process.join()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_bert):
    """Checksums of an undisturbed build and the seconds that each stage took; built once."""
    root = tmp_path_factory.mktemp("undisturbed")
    builder = Builder(root, tiny_bert)
    begun = []
    while not begun or begun[-1][0] is not None:
        begun.append((builder.stages.recv()[0], time.monotonic()))
    builder.process.join()
    seconds = {}
    for (stage, start), (_, end) in itertools.pairwise(begun):
        seconds.setdefault(stage, end - start)
    return root, checksums(root), seconds


def test_killed_ten_times_at_random_in_every_stage(tmp_path, tiny_bert, undisturbed):
    _, expected, seconds = undisturbed
    draw = random.Random(0)
    interrupted = dict.fromkeys(STAGES, 0)
    for stage in STAGES:
        for _ in range(3 * KILLS):
            if interrupted[stage] == KILLS:
                break
            builder = Builder(tmp_path, tiny_bert)
            folder = builder.wait_for(stage)
            time.sleep(draw.uniform(0, seconds[stage]))
            builder.kill()
            if (folder / MANIFEST_NAME).is_file():
                shutil.rmtree(folder)  # too late; again
            else:
                interrupted[stage] += 1
    build_all(tmp_path, tiny_bert)
    assert checksums(tmp_path) == expected
    assert not list(tmp_path.rglob("*.tmp"))
    assert min(interrupted.values()) >= KILLS // 2, interrupted


def test_two_builders_of_which_one_is_killed(tmp_path, tiny_bert, undisturbed):
    _, expected, seconds = undisturbed
    draw = random.Random(1)
    for number in range(3):
        root = tmp_path / str(number)
        builders = [Builder(root, tiny_bert) for _ in range(2)]
        builders[0].wait_for("documents")
        time.sleep(draw.uniform(0, sum(seconds.values())))
        builders[0].kill()
        builders[1].process.join()
        assert builders[1].process.exitcode == 0
        assert checksums(root) == expected


def test_four_builders_build_everything_once(tmp_path, tiny_bert, undisturbed):
    builders = [Builder(tmp_path, tiny_bert) for _ in range(4)]
    for builder in builders:
        builder.process.join()
    assert [builder.process.exitcode for builder in builders] == [0] * 4
    assert checksums(tmp_path) == undisturbed[1]
    assert not list(tmp_path.rglob("*.tmp"))


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
    config = OmegaConf.create({"paths": {"artifacts": str(root)}})
    draw = random.Random(2)
    files = list(every_file(root))
    assert {folder.parent.name for folder, _ in files} == set(STAGES)
    verify.run(config)
    for folder, name in files:
        path = folder / name
        content = path.read_bytes()
        place = draw.randrange(len(content))
        flipped = content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
        path.write_bytes(content[:place] if damage == "truncated" else flipped)
        try:
            with pytest.raises(ArtifactError, match="1 files differ") as found:
                verify.run(config)
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
        verify.run(OmegaConf.create({"paths": {"artifacts": str(root)}}))
