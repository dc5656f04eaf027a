"""A stage small enough to follow: shard i holds i squared. Run as a script it builds in a process of its own."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from retro_lab.artifacts.stage import Stage
from retro_lab.artifacts.store import ArtifactStore


class Squares(Stage):
    """Writes squares, and a line in `log` for each shard it builds; dies of SIGKILL inside shard `die_in`."""

    name = "squares"
    unit = "numbers"

    def __init__(self, count=4, version_note="a", log=None, die_in=None, fail_in=None, error=None, pause=0.0):
        self.count, self.note, self.log = count, version_note, log
        self.die_in, self.fail_in, self.error, self.pause = die_in, fail_in, error, pause

    def settings(self):
        return {"count": self.count, "note": self.note}

    def shard_sizes(self):
        return [1] * self.count

    def write_shard(self, shard, folder, advance):
        (folder / "half.npy").write_bytes(b"half")
        if shard == self.die_in:
            os.kill(os.getpid(), signal.SIGKILL)
        if shard == self.fail_in:
            raise self.error
        time.sleep(self.pause)
        (folder / "half.npy").unlink()
        np.save(folder / "square.npy", np.array([shard**2]))
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{shard}\n")
        advance(1)
        return {"value": shard**2}

    def finish(self, shards, facts, folder):
        return {"sum": sum(fact["value"] for fact in facts)}


class CombinedSquares(Squares):
    """The same, as one file."""

    name = "combined"
    combines_shards = True

    def finish(self, shards, facts, folder):
        np.save(folder / "squares.npy", np.concatenate([np.load(shard / "square.npy") for shard in shards]))
        return super().finish(shards, facts, folder)


if __name__ == "__main__":
    root, log, die_in, pause = sys.argv[1:]
    stage = Squares(count=6, log=log, die_in=int(die_in), pause=float(pause))
    ArtifactStore(Path(root)).build(stage)
