"""Builds of the real stages in processes of their own. As a script it builds on a disk that is too small."""

import json
import subprocess
import sys
from pathlib import Path

import pipeline
from pipeline import RandomSentences, build_chunks, search

from retro_lab.artifacts.manifest import Manifest
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.errors import ArtifactError

STEP_KIB = 8


def build_all(root, bert):
    """Build every stage up to the neighbors of both splits, in database shards of two sizes."""
    chunks = build_chunks(root, bert, RandomSentences(documents=16, longest=60), similarity=0.8)
    for split in ("train", "validation"):
        search(chunks, split, stored=3, cuts=[20])


def build_announced(root, bert, artifacts):
    """The same, sending the folder of each artifact through the connection `artifacts` before it is built."""

    class Announcing(ArtifactStore):
        def build(self, stage):
            artifacts.send(f"{stage.name}/{stage.fingerprint}")
            return super().build(stage)

    pipeline.ArtifactStore = Announcing
    build_all(root, bert)


def checksums(root):
    """Checksum of every file of every artifact, by its path."""
    found = {}
    for folder in ArtifactStore(root).artifacts():
        files = Manifest.read(folder).files
        found |= {f"{folder.relative_to(root)}/{name}": record.sha256 for name, record in files.items()}
    return found


def main():
    """Build below the folder of a tmpfs that grows whenever it is full; print how often it was, and the checksums."""
    root, bert = Path(sys.argv[1]), sys.argv[2]
    errors = []
    while True:
        size = STEP_KIB * (1 + len(errors))
        subprocess.run(["mount", "-o", f"remount,size={size}k", root], check=True)
        try:
            build_all(root, bert)
            break
        except ArtifactError as error:
            errors.append(str(error))
    print(json.dumps({"errors": errors, "checksums": checksums(root)}))


if __name__ == "__main__":
    main()
