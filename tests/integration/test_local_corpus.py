"""The real command line on corpora of the user's own that are small, strange or not there."""

import json

import pytest
from local_experiment import furnish, run, run_apart


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_bert):
    """A folder with a corpus in it, and the small encoder as the embedder."""
    return furnish(tmp_path_factory.mktemp("workplace"), tiny_bert)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("corpus.path=nowhere.jsonl", "nowhere.jsonl"),
        ("corpus.text_field=body", "body"),
        ("retrieval.k=100000", "retrieval.k=100000"),
        ("data.sequence_length=33", "data.sequence_length=33"),
        ("index.factory=IVF4096,Flatt", "index.factory=IVF4096,Flatt"),
        ("data.batch_size=10000000", "data.batch_size=10000000 makes 10,000,000 sequences"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(workplace, override, sentence):
    refused = run(workplace, "name=bad", override, check=2)
    assert sentence in refused.stderr.splitlines()[-1]
    assert not (workplace / "outputs" / "bad").exists()


def test_a_process_that_is_refused_its_input_says_nothing_else(workplace):
    refused = run_apart(workplace, "name=bad", "retrieval.method=bm24", check=2)
    [sentence] = refused.stderr.splitlines()
    assert "retrieval.method=bm24" in sentence
    assert refused.stdout == ""


def test_an_empty_corpus_is_refused(workplace):
    (workplace / "empty.jsonl").write_text("")
    assert "empty.jsonl" in run(workplace, "corpus.path=empty.jsonl", "name=bad", check=2).stderr


def test_documents_shorter_than_a_chunk_are_built_and_less_than_a_sequence_is_refused(workplace):
    rows = [json.dumps({"text": f"a {number}"}) for number in range(30)]
    (workplace / "short.jsonl").write_text("\n".join(rows))
    settings = ["corpus.path=short.jsonl", "decontamination=none", "retrieval.method=bm25"]
    built = run(workplace, *settings, "task=build").stdout.splitlines()
    assert built[0].startswith("train: 2")
    assert built[1].startswith("validation: ")
    refused = run(workplace, *settings, "data.sequence_length=512", "name=bad", check=2)
    assert "less than one sequence of data.sequence_length=512" in refused.stderr.splitlines()[-1]


def test_what_is_too_long_or_too_like_a_held_out_document_is_not_trained_on(tmp_path, tiny_bert):
    furnish(tmp_path, tiny_bert)
    texts = [json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()][:20]
    held, train = texts[:4], [*texts[4:], texts[1] + "  # a copy", "long " * 1000, texts[9] + "  # a copy"]
    for name, rows in (("held", held), ("train", train)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in rows))
    paths = ["corpus.path=train.jsonl", "corpus.test_path=held.jsonl", "corpus.max_document_bytes=2000"]
    done = run(tmp_path, *paths, "task=build")
    said = " ".join(done.stderr.split())
    assert "skipped 1 longer than corpus.max_document_bytes, such as train.jsonl:18: longer" in said
    assert "dropped 1 training documents that nearly duplicate held-out ones, such as train.jsonl:17:" in said
    assert "dropped 1 training documents that nearly duplicate others, such as train.jsonl:19:" in said
    assert "train: 16 documents" in done.stdout
    assert "test: nearest training document: median similarity" in done.stdout
    run(tmp_path, *paths, "corpus.max_document_bytes=0", "task=build", check=2)
    off = run(tmp_path, *paths, "task=build", "decontamination=none", "deduplication=none")
    assert "nearest training document" not in off.stdout
    assert "train: 18 documents" in off.stdout
    facts = [
        json.loads(path.read_text())["facts"] for path in tmp_path.glob("artifacts/decontamination/*/manifest.json")
    ]
    assert [found["decontamination"]["dropped"]["documents"] for found in facts] == [1]
