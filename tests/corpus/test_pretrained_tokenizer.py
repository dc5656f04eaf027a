"""Tokenizers of folders, files and the hub: what they are known by, and what is said of those that cannot be used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers_of_all_kinds import byte_level, sentencepiece_bpe

from retro_lab.corpus.pretrained_tokenizer import PretrainedTokenizer
from retro_lab.errors import ConfigurationError

COMMIT = "a" * 40
TEXT = "a<|endoftext|>b, </s> and Foo"


@pytest.fixture
def folder(tmp_path):
    """Folder of a byte-level tokenizer with two special tokens, of which `<|endoftext|>` ends a text."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    byte_level(["<pad>", "<|endoftext|>", "<other>"]).save(str(folder / "tokenizer.json"))
    configure(folder, eos_token="<|endoftext|>")
    return folder


def configure(folder, **settings):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def marker(path, **settings):
    return PretrainedTokenizer(str(path), **settings).make([]).document_marker


def test_a_folder_and_its_file_are_the_same_tokenizer(folder):
    by_folder, by_file = PretrainedTokenizer(str(folder)), PretrainedTokenizer(str(folder / "tokenizer.json"))
    assert by_folder.identity() == by_file.identity() == json.loads(json.dumps(by_file.identity()))
    assert str(folder) not in str(by_file.identity())
    assert marker(folder) == marker(folder / "tokenizer.json") == 1


def test_a_copy_is_the_same_tokenizer_whatever_else_lies_beside_it(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "README.md").write_text("a copy")
    configure(copy, eos_token="<|endoftext|>", model_max_length=512)
    assert PretrainedTokenizer(str(copy)).identity() == PretrainedTokenizer(str(folder)).identity()


def test_another_marker_or_other_ids_are_another_tokenizer(folder):
    identities = [PretrainedTokenizer(str(folder)).identity()]
    configure(folder, eos_token="<other>")
    assert marker(folder) == 2
    identities.append(PretrainedTokenizer(str(folder)).identity())
    configure(folder)
    size = byte_level(["<pad>", "<|endoftext|>", "<other>"]).get_vocab_size()
    assert marker(folder) == size  # it has no token for it, so a new id
    identities.append(PretrainedTokenizer(str(folder)).identity())
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<pad>"}))
    assert marker(folder) == 0
    identities.append(PretrainedTokenizer(str(folder)).identity())
    sentencepiece_bpe().save(str(folder / "tokenizer.json"))
    configure(folder, eos_token="</s>")
    identities.append(PretrainedTokenizer(str(folder)).identity())
    assert len({json.dumps(identity) for identity in identities}) == len(identities)


def test_a_file_of_any_name_works_alone_and_its_marker_can_be_named(tmp_path):
    path = tmp_path / "mine.json"
    byte_level().save(str(path))
    assert marker(path, marker="<|endoftext|>") == 0
    assert marker(path) == byte_level().get_vocab_size()
    assert (
        PretrainedTokenizer(str(path)).identity() != PretrainedTokenizer(str(path), marker="<|endoftext|>").identity()
    )
    tokenizer = PretrainedTokenizer(str(path)).make([])
    assert tokenizer.decode(tokenizer.encode([TEXT])) == [TEXT]
    with pytest.raises(ConfigurationError, match=r"has no token '<none>'; set tokenizer\.marker to one that it has"):
        marker(path, marker="<none>")


def test_what_cannot_be_a_tokenizer_is_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "tokenizer.model").write_bytes(b"\x0a\x05pieces")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no tokenizer")
    monkeypatch.chdir(tmp_path)
    wanted = {
        "broken": "tokenizer.name=broken cannot be loaded",
        "broken/tokenizer.json": "tokenizer.name=broken/tokenizer.json cannot be loaded",
        "pieces": "holds the SentencePiece model tokenizer.model and no tokenizer.json",
        "empty": "tokenizer.name=empty is a folder without a tokenizer.json",
        "text.txt": "tokenizer.name=text.txt cannot be loaded",
        "./nothing/here.json": "There is no tokenizer './nothing/here.json' on the hub",
        "org/nothing": "it is not in the cache",
    }
    for name, words in wanted.items():
        with pytest.raises(ConfigurationError) as error:
            PretrainedTokenizer(name).identity()
        assert words in str(error.value)
        assert "\n" not in str(error.value)
        assert "tiktoken" not in str(error.value)


HUB = """
import json, os, sys
from retro_lab.corpus.pretrained_tokenizer import PretrainedTokenizer
from retro_lab.errors import ConfigurationError

def refusal(name, revision=None):
    try:
        return PretrainedTokenizer(name, revision).identity()
    except ConfigurationError as error:
        return str(error)

recipe = PretrainedTokenizer("org/sample")
found = recipe.identity() | {"document_marker": recipe.make([]).document_marker}
print(json.dumps([found, refusal("org/other"), refusal("org/sample", "v2")]), flush=True)
sys.stdin.readline()
recipe = PretrainedTokenizer("org/sample")
print(json.dumps(recipe.identity() | {"document_marker": recipe.make([]).document_marker}))
"""


def test_a_tokenizer_of_the_hub_goes_by_its_commit_and_is_found_again_offline(folder, tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("hub_server.py")), str(folder), "models"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    try:
        environment["HF_ENDPOINT"] = server.stdout.readline().strip()
        client = subprocess.Popen(
            [sys.executable, "-c", HUB], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        found, missing, revision = json.loads(client.stdout.readline())
    finally:
        server.kill()
        server.wait()
    after, _ = client.communicate("\n", timeout=60)
    identity = {"kind": "pretrained", "name": "org/sample", "commit": COMMIT, "marker": None}
    assert found == identity | {"document_marker": 1} == json.loads(after)
    assert "There is no tokenizer 'org/other' on the hub" in missing
    assert "org/sample has no revision 'v2'; check tokenizer.revision." in revision
