import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from written_files import read_all, texts, write_lines, write_parquet

from retro_lab.corpus.sources import hub
from retro_lab.corpus.sources.hub import HubSource
from retro_lab.errors import CorpusError

COMMIT = "a" * 40


@pytest.fixture
def dataset(tmp_path):
    """Folder in the hub's layout: three shards to train on, one held out."""
    folder = tmp_path / "dataset"
    for shard in range(3):
        rows = [f"train {shard} {row}" for row in range(4)]
        write_parquet(folder / f"data/train-{shard:05d}-of-00003.parquet", key=[f"k{row}" for row in rows], text=rows)
    write_parquet(folder / "data/validation-00000-of-00001.parquet", key=["v"], text=["held out"])
    return folder


def test_each_shard_is_a_part(dataset):
    source = HubSource(str(dataset), validation_fraction=0.0)
    assert source.parts() == 3
    assert [document.id for _, document in source.read(1)] == [
        f"data/train-00001-of-00003.parquet:{row}" for row in (1, 2, 3, 4)
    ]
    assert texts(source) == [f"train {shard} {row}" for shard in range(3) for row in range(4)]


def test_a_validation_split_is_held_out_and_a_fraction_otherwise(dataset):
    pairs = read_all(HubSource(str(dataset), validation_split="validation", id_field="key"))
    assert [document.id for split, document in pairs if split != "train"] == ["v"]
    assert len(pairs) == 13
    mixed = read_all(HubSource(str(dataset), validation_fraction=0.3, test_fraction=0.3, id_field="key"))
    assert {split for split, _ in mixed} == {"train", "validation", "test"}
    assert len(mixed) == 12


def test_a_copy_is_the_same_corpus(dataset, tmp_path):
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    one, other = HubSource(str(dataset)), HubSource(str(copy))
    assert one.identity() == other.identity() == json.loads(json.dumps(one.identity()))
    assert str(tmp_path) not in str(one.identity())
    assert read_all(one) == read_all(one) == read_all(other)
    write_parquet(copy / "data/train-00002-of-00003.parquet", key=["k"], text=["changed"])
    assert HubSource(str(copy)).identity() != one.identity()
    assert HubSource(str(dataset), text_field="key").identity() != one.identity()


def test_compressed_json_shards_by_data_files(tmp_path):
    for shard in range(2):
        write_lines(tmp_path / f"train/{shard:02d}.jsonl.zst", {"text": f"{shard}", "meta": {"set": "a"}})
    write_lines(tmp_path / "val.jsonl.gz", {"text": "held out", "meta": {"set": "b"}})
    files = {"train": "train/*.jsonl.zst", "validation": ["val.jsonl.gz"]}
    source = HubSource(str(tmp_path), data_files=files, validation_split="validation")
    assert [(split == "train", document.id, document.text) for split, document in read_all(source)] == [
        (True, "train/00.jsonl.zst:1", "0"),
        (True, "train/01.jsonl.zst:1", "1"),
        (False, "val.jsonl.gz:1", "held out"),
    ]


def test_a_byte_budget_is_divided_by_size_and_opens_no_more_shards_than_it_needs(tmp_path, monkeypatch):
    for shard in range(8):
        write_lines(tmp_path / f"train-{shard}.jsonl", *({"text": "x" * 100} for _ in range(300 if shard else 100)))
    source = HubSource(str(tmp_path), max_bytes=22_000)
    assert [len(list(source.read(part))) for part in range(source.parts())] == [10, *[30] * 7]
    assert len(texts(HubSource(str(tmp_path), max_bytes=1e9))) == 2200

    monkeypatch.setattr(hub, "FILE_BYTES_OPENED", 1)
    few = HubSource(str(tmp_path), max_bytes=15_000)  # four times that is two of the eight files
    assert {document.id.split(":")[0] for _, document in read_all(few)} == {"train-0.jsonl", "train-4.jsonl"}
    assert 150 <= len(texts(few)) <= 152


def test_a_byte_budget_leaves_the_validation_fraction_to_the_held_out_split(tmp_path):
    for split in ("train", "validation"):
        write_lines(tmp_path / f"{split}.jsonl", *({"text": "x" * 100} for _ in range(100)))
    source = HubSource(
        str(tmp_path), validation_split="validation", validation_fraction=0.2, test_fraction=0.05, max_bytes=4000
    )
    splits = [split for split, _ in read_all(source)]
    assert (splits.count("train"), len(splits)) == (30, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "training"}, "no split 'training', which corpus.train_split names; did you mean 'train'"),
        ({"validation_split": "test"}, "no split 'test', which corpus.validation_split names"),
        ({"subset": "20991231.en"}, "check corpus.subset"),
        ({"data_files": {"train": "nothing-*.parquet"}}, "check corpus.subset and corpus.data_files"),
        ({"text_field": "body"}, "00003.parquet:1 has no field 'body' but key, text; set corpus.text_field"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_sentence(dataset, options, message):
    with pytest.raises(CorpusError, match=message) as raised:
        read_all(HubSource(str(dataset), **options))
    assert "\n" not in str(raised.value)


def test_a_damaged_shard_is_named_with_the_row(tmp_path):
    write_lines(tmp_path / "train-0.jsonl", {"text": "one"})
    write_lines(tmp_path / "train-1.jsonl", {"text": "two"}, b'{"text": broken}')
    source = HubSource(str(tmp_path))
    assert len(list(source.read(0))) == 1
    with pytest.raises(CorpusError, match=r"train-1.jsonl cannot be read after row 0: JSON parse error"):
        list(source.read(1))


def test_without_the_hub_the_reason_comes_at_once_and_a_pinned_corpus_keeps_its_identity():
    pinned = HubSource("org/sample", revision=COMMIT)
    assert pinned.identity()["commit"] == COMMIT
    start = time.monotonic()
    for ask in (pinned.parts, HubSource("org/sample").identity, HubSource("org/sample", revision="main").identity):
        with pytest.raises(CorpusError, match=r"cannot be reached for org/sample \(HF_HUB_OFFLINE is set\)"):
            ask()
    assert time.monotonic() - start < 5


ONLINE = """
import json, sys, time
from retro_lab.corpus.sources import hub
from retro_lab.corpus.sources.hub import HubSource
from retro_lab.errors import CorpusError
def refusal(**options):
    start = time.monotonic()
    try:
        HubSource(**options).parts()
    except CorpusError as error:
        return str(error) if time.monotonic() - start < 5 else "late"
source = HubSource("org/sample", test_split="validation", max_bytes=100.0)
found = {
    "commit": source.identity()["commit"],
    "documents": [(s, d.id, d.source) for part in range(source.parts()) for s, d in source.read(part)],
    "missing": refusal(dataset="org/other"),
    "revision": refusal(dataset="org/sample", revision="v2"),
}
print(json.dumps(found), flush=True)
sys.stdin.readline()  # the server is stopped meanwhile
print(json.dumps(refusal(dataset="org/sample")))
"""


def test_a_dataset_of_the_hub_is_streamed_with_its_commit(dataset, tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("hub_server.py")), str(dataset)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    try:
        environment["HF_ENDPOINT"] = server.stdout.readline().strip()
        client = subprocess.Popen(
            [sys.executable, "-c", ONLINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        found = json.loads(client.stdout.readline())
    finally:
        server.kill()
        server.wait()
    after, _ = client.communicate("\n", timeout=60)
    assert found["commit"] == COMMIT
    assert ["train", "data/train-00001-of-00003.parquet:4", "org/sample"] in found["documents"]
    assert found["documents"][-1][1:] == ["data/validation-00000-of-00001.parquet:1", "org/sample"]
    assert "There is no dataset 'org/other'" in found["missing"]
    assert "org/sample has no revision 'v2'" in found["revision"]
    assert "The Hugging Face hub cannot be reached for org/sample" in json.loads(after)
