"""`open_run` in Python: a run's database, and what its model writes with it."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from local_experiment import command, furnish, run
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from retro_lab import open_run
from retro_lab.config.compose import compose
from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.errors import ArtifactError, ConfigurationError, RetroLabError
from retro_lab.export.neighbors import as_arrays
from retro_lab.generation.generator import Generated
from retro_lab.generation.sampling import Sampling
from retro_lab.model.sharding import whole_weights
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.trained_model import save_model
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.opened import OpenedModel, chosen_model, open_with_inputs

PROMPTS = ['"""A module', "import numpy as np\n\n\ndef mean(values: np.ndarray) -> float:\n", "x"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> SimpleNamespace:
    """A trained run, and its model as a task opens it."""
    place = furnish(tmp_path_factory.mktemp("library"), tiny_bert)
    arguments = ["name=mine", "task=train", "schedule.tokens=128", "evaluation.curve_tokens=64", "evaluation.k=[2]"]
    run(place, *arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        config = compose(command(*arguments))
        folder = place / "outputs" / "mine"
        with Inputs(config) as inputs:
            task = open_with_inputs(config, chosen_model(RunFolder(folder), None), inputs)
            settings = task.trained.settings
            baseline = replace(settings, k=0, size=replace(settings.size, cca_layers=[]))
            save_model(folder / "baseline", whole_weights(baseline.build()), baseline, task.trained.tokenizer)
            yield SimpleNamespace(place=place, folder=folder, task=task)


@pytest.fixture(autouse=True)
def _there(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab.place)


def same(one: Generated, other: Generated) -> bool:
    """Return whether two texts are equal, and so is what they retrieved."""
    return (one.text, one.finish, one.tokens.tolist()) == (other.text, other.finish, other.tokens.tolist()) and [
        (chunk.stop, chunk.found.ids.tolist()) for chunk in one.chunks
    ] == [(chunk.stop, chunk.found.ids.tolist()) for chunk in other.chunks]


def test_a_run_writes_what_the_task_writes(lab: SimpleNamespace) -> None:
    opened, task = open_run(lab.folder), lab.task
    assert isinstance(task, OpenedModel)
    prompts = opened.tokenizer.encode(PROMPTS)
    for k in (None, 0, 1):
        sampling = Sampling(1.0, top_k=50, top_p=0.9, seed=3)
        expected = task.generator(k).generate(prompts, max_tokens=20, sampling=sampling, stop=["\n\n"])
        written = opened.generate(
            PROMPTS, max_tokens=20, temperature=1.0, top_k=50, top_p=0.9, seed=3, stop=["\n\n"], k=k
        )
        assert all(map(same, written, expected))
        assert any(text.chunks for text in written) is (k != 0)
    [alone] = opened.generate(PROMPTS[1:2], max_tokens=20, retrieve_every=4)
    assert {chunk.stop - chunk.start for chunk in alone.chunks} == {8}
    assert np.diff([chunk.stop for chunk in alone.chunks])[-4:].tolist() == [4] * 4
    single = opened.generate(PROMPTS[1], max_tokens=20, retrieve_every=4, drafts=True)
    assert same(single, alone), "drafts change no text"


def test_the_neighbors_of_a_text_are_read_as_text(lab: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    opened = open_run(lab.folder)
    written = opened.generate(PROMPTS[1], max_tokens=4)
    assert "documents" not in "".join(capfd.readouterr()), "what a build says was said at the build"
    store = lab.task.database.store
    store = lab.task.database.store
    parts = opened.stretches(written)
    for chunk, part in zip(written.chunks, parts, strict=False):
        assert [neighbor.text for neighbor in part.neighbors] == store.texts(chunk.found.ids)
        assert [neighbor.distance for neighbor in part.neighbors] == chunk.found.distances.tolist()
    assert len(parts) == len(written.chunks) + 1
    assert "".join(part.prompt for part in parts) == PROMPTS[1]
    assert "".join(part.text for part in parts) == written.text
    by_hand = open_run(lab.folder, artifacts="none").generate(PROMPTS[1], max_tokens=4, neighbors=["def mean"])
    assert [part.neighbors for part in open_run(lab.folder, artifacts="none").stretches(by_hand)] == [[]] * len(parts)


def test_a_chunk_of_the_database_finds_itself(lab: SimpleNamespace) -> None:
    store = lab.task.database.store
    chunks = store.document_start[:6]
    texts = store.texts(chunks)
    for model in ("retro", "baseline"):
        found = open_run(lab.folder, model).search(texts, 3)
        for near, text, chunk in zip(found, texts, chunks, strict=True):
            assert len(near) == 3
            assert near[0].distance == pytest.approx(0, abs=1e-3)
            if near[0].chunk == chunk:  # not where another is equal to it
                assert near[0].text == text
                assert near[0].text + near[0].continuation == store.texts(np.array([chunk]), 2)[0]
                assert near[0].document == store.document_ids(store.document_of(np.array([chunk])))[0]
        assert sum(near[0].chunk == chunk for near, chunk in zip(found, chunks, strict=True)) >= 4
    assert [near.chunk for near in open_run(lab.folder).search(texts[0], 2)] == [near.chunk for near in found[0][:2]]


def test_what_an_exported_model_retrieves_is_what_the_run_does(lab: SimpleNamespace) -> None:
    chunks = lab.task.database.store.read(np.arange(4)).astype(np.int64)
    expected = as_arrays(lab.task.retrieve(2))(chunks)
    for found, wanted in zip(open_run(lab.folder).retrieve(chunks), expected, strict=True):
        assert found.dtype == np.int64
        assert np.array_equal(found, wanted)


def test_the_database_is_the_one_that_the_run_was_written_with(
    lab: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No configuration file is read again, and the artifacts may have moved."""
    moved = tmp_path / "artifacts"
    moved.symlink_to(lab.place / "artifacts")
    (tmp_path / "corpus.jsonl").symlink_to(lab.place / "corpus.jsonl")
    (tmp_path / "embedder").symlink_to(lab.place / "embedder")
    monkeypatch.setattr("retro_lab.config.session.hydra_compose", None)
    monkeypatch.chdir(tmp_path)
    [expected] = lab.task.generator(2).generate(lab.task.trained.tokenizer.encode(PROMPTS[1:2]), max_tokens=9)
    assert same(open_run(lab.folder).generate(PROMPTS[1], max_tokens=9), expected)
    moved.rename(tmp_path / "elsewhere")
    assert same(open_run(lab.folder, artifacts=tmp_path / "elsewhere").generate(PROMPTS[1], max_tokens=9), expected)
    monkeypatch.setenv("RETRO_LAB_ARTIFACTS", str(tmp_path / "elsewhere"))
    assert same(open_run(lab.folder).generate(PROMPTS[1], max_tokens=9), expected)


def test_without_its_artifacts_a_run_still_writes(
    lab: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(lab.folder, copy)
    opened = open_run(copy, artifacts=tmp_path / "none")
    advice = r"none lacks the documents [^\n]*`python -m retro_lab [^\n]*name=mine[^\n]* task=build`[^\n]*\.$"
    for use in (lambda: opened.generate("x"), lambda: opened.search("x", 1), lambda: opened.retrieve(np.zeros((1, 8)))):
        with pytest.raises(ArtifactError, match=advice):
            use()
    assert not (tmp_path / "none").exists(), "nothing is built"
    assert same(
        opened.generate("import", max_tokens=9, k=0), open_run(lab.folder).generate("import", max_tokens=9, k=0)
    )
    near = ["import numpy as np", "import numpy"]
    expected = open_run(lab.folder).generate(PROMPTS[1], max_tokens=9, neighbors=near)
    assert same(opened.generate(PROMPTS[1], max_tokens=9, neighbors=near), expected)
    assert [chunk.found.lengths.tolist() for chunk in expected.chunks] == [
        [min(16, len(tokens) - 1) for tokens in opened.tokenizer.encode(near)] for _ in expected.chunks
    ]
    (copy / "config.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"is not in a run's folder with a config\.yaml"):
        open_run(copy).search("x", 1)
    assert torch.equal(opened.model.readout_weight, open_run(copy / "retro").model.readout_weight)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: content["settings"]["index"].update(wings=2), r"does not fit this release \([^\n]*wings"),
        (lambda content: content["settings"].pop("corpus"), r"config\.yaml [^\n]*corpus"),
        (lambda content: content.pop("settings"), r"config\.yaml is damaged"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    lab: SimpleNamespace, tmp_path: Path, change: object, sentence: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(lab.folder, copy)
    content = yaml.safe_load((copy / "config.yaml").read_text())
    assert callable(change)
    change(content)
    (copy / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RetroLabError, match=sentence) as caught:
        open_run(copy).search("x", 1)
    assert "\n" not in str(caught.value)


def test_a_database_in_other_tokens_or_chunks_is_refused(lab: SimpleNamespace) -> None:
    trained = lab.task.trained
    settings = replace(trained.settings, model=replace(trained.settings.model, chunk_length=4))
    with pytest.raises(ConfigurationError, match=r"of 4 tokens, and the database [^\n]+ chunks of 8; set "):
        OpenedModel(replace(trained, settings=settings), lambda: lab.task.database, 8).generator()
    other = DocumentTokenizer.adapt(Tokenizer(WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")), "<|endoftext|>")
    with pytest.raises(ConfigurationError, match=r"has another tokenizer than its database, [^\n]+; "):
        OpenedModel(replace(trained, tokenizer=other), lambda: lab.task.database, 8).generator()


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda run: run.generate("x", k=-1), r"^k must be 0 or more, not -1\.$"),
        (lambda run: run.generate("x", k=10**6), r"is more than the \d+ chunks of the database"),
        (lambda run: run.generate("x", neighbors="ab"), r"^neighbors is a list of texts; "),
        (lambda run: run.generate("x", neighbors=["ab"], k=2), r"^neighbors take the place of the k=2 "),
        (lambda run: run.generate(["x", 3]), r"^prompts must be a text or a list of texts, not int\.$"),
        (lambda run: run.generate("x", max_tokens=-1), r"^max_tokens must be 0 or more, not -1\.$"),
        (lambda run: run.generate("x", retrieve_every=9), r"^retrieve_every must be from 1 to 8,"),
        (lambda run: run.generate("x", temperature=-1.0), r"temperature must be 0 or more"),
        (lambda run: run.generate("x", stop="end"), r"^stop is a list of strings"),
        (lambda run: run.search("x", 0), r"^k must be 1 or more, not 0\.$"),
        (lambda run: open_run(run.folder.parent, "baseline").generate("x", k=2), r"^A baseline has no "),
        (lambda run: open_run(run.folder.parent, "baseline").retrieve(np.zeros((1, 8))), r"is a baseline, which "),
    ],
)
def test_a_wrong_argument_is_one_sentence(lab: SimpleNamespace, use: object, sentence: str) -> None:
    assert callable(use)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        use(open_run(lab.folder))
    assert "\n" not in str(caught.value)
