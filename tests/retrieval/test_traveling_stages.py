"""What a stage is made of goes to other processes by name, not by content: a corpus would not fit into a message."""

import pickle

from pipeline import RandomSentences, build_chunks, search

from retro_lab.artifacts.store import ArtifactStore

LARGEST = 60_000
"""Bytes of the largest stage, most of them checksums in manifests."""


def test_every_stage_travels_as_settings_and_folders_and_is_the_same(tmp_path, tiny_bert, monkeypatch):
    stages = {}
    build = ArtifactStore.build

    def remember(self, stage):
        stages[stage.name] = stage
        return build(self, stage)

    monkeypatch.setattr(ArtifactStore, "build", remember)
    chunks = build_chunks(tmp_path, tiny_bert, RandomSentences(documents=16, longest=60), similarity=0.8)
    for method in ("dense", "bm25", "hybrid"):
        search(chunks, "train", stored=3, method=method)
    assert len(stages) == 11
    for name, stage in stages.items():
        text = pickle.dumps(stage)
        assert len(text) < LARGEST, name
        copy = pickle.loads(text)
        copy.__dict__.pop("recipe", None)
        copy.__dict__.pop("fingerprint")
        assert copy.fingerprint == stage.fingerprint, name
        assert list(copy.shard_sizes()) == list(stage.shard_sizes())
        copy.check_here()
