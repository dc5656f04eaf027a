"""Names from a corpus are data: whatever a file or a document is called, nothing is written under that name."""

import pyarrow.parquet as pq
import pytest
from written_files import write_bytes, write_lines

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.sources.local import LocalSource
from retro_lab.corpus.tokenizer import ByteBPE
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage

NAMES = [
    "../../escaped",
    "/etc/escaped",
    "~/escaped",
    "$(touch escaped)",
    "${oc.env:HOME}",
    "..\\escaped",
    "-rf *",
    "%2e%2e%2fescaped",
    "<script>alert(1)</script>",
    "new\nline",
    "00001",
    "manifest.json",
]
TEXT = "a document of some words, of which more follow " * 3


def build(root, source):
    """Build documents and tokens of a source; returns the names of the files there, and the ids as read back."""
    store = ArtifactStore(root)
    documents = store.build(DocumentsStage(source))
    tokenizer = store.build(TokenizerStage(ByteBPE(300, 1e6), documents))
    tokens = store.build(TokensStage(documents, tokenizer, "train", 8, 0))
    names = {path.name for path in root.rglob("*") if path.is_file() and path.parent.name != ".locks"}
    return names, set(pq.read_table(tokens.folder / "documents.parquet")["id"].to_pylist())


@pytest.fixture
def plain(tmp_path):
    """Names of the files that a build of harmless documents leaves."""
    records = [{"text": TEXT, "id": f"plain {number}"} for number in range(len(NAMES))]
    path = write_lines(tmp_path / "plain.jsonl", *records)
    held = write_lines(tmp_path / "held.jsonl", *({"text": TEXT, "id": f"held out {n}"} for n in range(2)))
    return build(tmp_path / "plain", LocalSource(str(path), str(held), id_field="id"))[0]


def test_ids_of_documents_are_no_paths(tmp_path, plain):
    path = write_lines(tmp_path / "corpus.jsonl", *({"text": TEXT, "id": name} for name in NAMES))
    held = write_lines(tmp_path / "held.jsonl", *({"text": TEXT, "id": f"../held out {n}"} for n in range(2)))
    before = set(tmp_path.iterdir())
    names, ids = build(tmp_path / "inside" / "artifacts", LocalSource(str(path), str(held), id_field="id"))
    assert ids == set(NAMES)
    assert names == plain
    assert set(tmp_path.iterdir()) - before == {tmp_path / "inside"}
    assert list((tmp_path / "inside").iterdir()) == [tmp_path / "inside" / "artifacts"]


def test_names_of_files_are_no_paths(tmp_path, plain):
    files = [name.replace("/", "_") + ".txt" for name in NAMES if not name.startswith(".")]  # which would be hidden
    for name in files:
        write_bytes(tmp_path / "corpus" / name, TEXT.encode())
    held = [write_bytes(tmp_path / f"held {number}.txt", TEXT.encode()) for number in range(2)]
    names, ids = build(tmp_path / "inside" / "artifacts", LocalSource(str(tmp_path / "corpus"), *map(str, held)))
    assert ids == {f"{name}:1" for name in files}
    assert names == plain
