"""lm-eval on a trained run, from the command line to the table, on files of the user's own."""

import csv
import json
import math
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from in_process import furnish, run, small

from retro_lab import open_run
from retro_lab.config.compose import compose
from retro_lab.runs.records import load_run
from retro_lab.tasks.build import Inputs

lm_eval_tasks = pytest.importorskip("lm_eval.tasks", reason="the extra eval is not installed")

WANTED = [
    "+experiment=quickstart", "corpus=local", "corpus.path=my.jsonl", "trainer=cpu", "logger=none", "retrieval.k=2",
    "name=scored", "evaluation.datasets=[test]", "task.longer_baseline=false", "schedule.tokens=3000",
]  # fmt: skip
SETTINGS = [*small(WANTED), *(setting for setting in WANTED if not setting.startswith("task."))]
TASKS = {
    "own_documents": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + word}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "which_word": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": ["import", "return", "class", "the"],
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "write_on": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{written}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}
COMMAND = ["task=zero_shot", *SETTINGS]


def naive(folder: Path) -> tuple[Callable[[str, str], float], Callable[[str], str]]:
    """Log-likelihoods and greedy texts of a baseline, from one forward pass for each."""
    trained = open_run(folder, "baseline")

    def log_probabilities(ids: list[int]) -> torch.Tensor:
        length, m = 64, trained.settings.model.chunk_length
        while len(ids) > length:
            ids = ids[m:]
        with torch.no_grad():
            return trained.model.logits(trained.model(torch.tensor([ids])))[0].log_softmax(-1)

    def likelihood(context: str, continuation: str) -> float:
        spaces = context[len(context.rstrip()) :]  # which lm-eval moves to the continuation
        context, continuation = context.rstrip(), spaces + continuation
        before = len(trained.tokenizer.encode([context])[0])
        ids = trained.tokenizer.encode([context + continuation])[0].tolist()
        found, wanted = log_probabilities(ids[:-1]), ids[before:]
        return sum(float(row[token]) for row, token in zip(found[-len(wanted) :], wanted, strict=True))

    def written(context: str) -> str:
        ids = trained.tokenizer.encode([context])[0].tolist()
        new: list[int] = []
        for _ in range(4):
            new.append(int(log_probabilities(ids + new)[-1].argmax()))
            if new[-1] == trained.tokenizer.document_marker:
                break
        return trained.tokenizer.decode([np.array(new)])[0].partition("\n")[0]

    return likelihood, written


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A trained run, and tasks over its test documents."""
    folder = furnish(tmp_path_factory.mktemp("zero_shot"), tiny_bert)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["task=compare", *small(WANTED), *WANTED], patch) == 0
        store = Inputs(compose(SETTINGS)).corpus.stores["test"]
    spans = zip(store.document_start, store.document_start[1:], store.document_length, strict=False)
    texts = store.tokenizer.decode([store.read(np.arange(a, b)).ravel()[:length] for a, b, length in spans])
    likelihood, written = naive(folder / "outputs" / "scored")
    rows = []
    for text in texts:
        words = text.split(" ")
        context = " ".join(words[:-1])
        choices = [likelihood(context, f" {choice}") for choice in TASKS["which_word"]["doc_to_choice"]]
        row = {"text": text, "context": context, "word": words[-1], "answer": int(np.argmax(choices))}
        rows.append(row | {"written": written(context), "likelihood": likelihood(context, f" {words[-1]}")})
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "tasks").mkdir()
    for name, task in TASKS.items():
        kwargs = {"data_files": {"test": str(folder / "documents.jsonl")}, "cache_dir": str(folder / "cache")}
        content = {"task": name, "dataset_path": "json", "dataset_kwargs": kwargs, "test_split": "test", **task}
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(content | {"metadata": {"version": 1.0}}))
    return folder


def test_lm_eval_measures_what_our_own_evaluation_does(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "200")
    files = ",".join(f"tasks/{name}.yaml" for name in TASKS)
    assert run([*COMMAND, f"task.tasks=[{files}]"], monkeypatch) == 0, capfd.readouterr().err
    printed = capfd.readouterr()
    folder = workplace / "outputs" / "scored"
    content = json.loads((folder / "zero_shot" / "results.json").read_text())
    scores = {(row["model"], row["k"], row["task"], row["metric"]): row for row in content}
    assert {key[:2] for key in scores} == {("baseline", 0), ("retro", 0), ("retro", 2)}

    # Live retrieval here, stored neighbors there.
    found = load_run(folder)
    for model, k in (("baseline", 0), ("retro", 0), ("retro", 2)):
        own = (found.retro if model == "retro" else found.baseline).evaluation(k)
        score = scores[model, k, "own_documents", "bits_per_byte"]
        assert score["value"] == pytest.approx(own.bits_per_byte, rel=1e-4)
        assert score["samples"] == own.documents
        assert (score["database"] is None) == (k == 0)
    levels = [scores["retro", k, "own_documents", "bits_per_byte"]["value"] for k in (0, 2)]
    assert abs(levels[0] - levels[1]) > 1e-3

    rows = [json.loads(line) for line in (workplace / "documents.jsonl").read_text().splitlines()]
    likelihoods = [row["likelihood"] for row in rows]
    perplexity = scores["baseline", 0, "last_word", "perplexity"]
    assert perplexity["value"] == pytest.approx(math.exp(-np.mean(likelihoods)), rel=1e-4)
    assert perplexity["standard_error"] > 0
    assert scores["baseline", 0, "which_word", "acc"]["value"] == 1
    assert scores["baseline", 0, "write_on", "exact_match"]["value"] == 1
    assert 0 <= scores["retro", 2, "last_word", "acc"]["value"] <= 1

    about = perplexity["provenance"]
    assert about["command"].startswith("python -m retro_lab task=zero_shot")
    assert about["versions"]["lm_eval"] == metadata.version("lm_eval")
    [table] = [list(csv.DictReader((folder / "zero_shot" / "results.csv").read_text().splitlines()))]
    assert [float(row["value"]) for row in table] == [row["value"] for row in content]
    assert "bits_per_byte" in printed.out
    assert "bootstrapping" not in printed.out
    for chatter in ("WARNING", "Overwriting", "Traceback"):
        assert chatter not in printed.err
    # Other questions and other numbers of neighbors are added, and the same ones are not repeated.
    more = ["task.tasks=[tasks/last_word.yaml]", "task.k=[0,1]", "task.limit=3", "task.few_shot=1"]
    for _ in range(2):
        assert run([*COMMAND, *more], monkeypatch) == 0, capfd.readouterr().err
    again = json.loads((folder / "zero_shot" / "results.json").read_text())
    assert again[: len(content)] == content
    added = [(row["model"], row["k"], row["metric"], row["samples"], row["few_shot"]) for row in again[len(content) :]]
    assert sorted(added) == sorted(
        (model, k, metric, 3, 1)
        for model, k in (("baseline", 0), ("retro", 0), ("retro", 1))
        for metric in ("perplexity", "acc")
    )


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["task.tasks=[tasks/none.yaml]"], "there is no file tasks/none.yaml"),
        (["task.tasks=[last_wrd]"], r"has no task last_wrd; did you mean last_word?"),
        (["task.tasks=[tasks/broken.yaml]"], "lm-eval cannot load tasks/broken.yaml ("),
        (["task.tasks=[]"], "task.tasks=[] names nothing to score"),
        (["task.k=[]"], "task.k=[] scores nothing"),
        (["task.tasks=[tasks/beams.yaml]"], "The task beams generates with num_beams=4, which is not supported"),
        (["retrieval.control=random", "task.tasks=[tasks/last_word.yaml]"], "retrieval.control=random makes neighbors"),
        (["name=untrained", "task.tasks=[tasks/last_word.yaml]"], "untrained holds no trained model; train one with"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    overrides: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(workplace)
    whole = yaml.safe_load(Path("tasks/write_on.yaml").read_text())
    beams = whole | {"task": "beams", "generation_kwargs": {"num_beams": 4}}
    Path("tasks/beams.yaml").write_text(yaml.safe_dump(beams))
    missing = whole["dataset_kwargs"] | {"data_files": {"test": "none.jsonl"}}
    Path("tasks/broken.yaml").write_text(yaml.safe_dump(whole | {"task": "broken", "dataset_kwargs": missing}))
    whole_index = lm_eval_tasks.TaskManager
    # Reading all of lm-eval's own tasks takes seconds.
    monkeypatch.setattr(
        lm_eval_tasks,
        "TaskManager",
        lambda include_defaults: whole_index(include_defaults=False, include_path="tasks"),
    )
    replaced = {text.partition("=")[0] for text in overrides}
    given = [setting for setting in COMMAND if setting.partition("=")[0] not in replaced]
    assert run([*given, *overrides], monkeypatch) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert reason in line


def test_without_lm_eval_the_extra_is_named(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert run(COMMAND, monkeypatch) == 2
    assert "task=zero_shot needs the extra `eval`: pip install 'retro_lab[eval]'" in capfd.readouterr().err
