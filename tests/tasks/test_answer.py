"""`task=answer`: a trained run learns to answer questions whose answers stand in their passages."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retro_lab.config.compose import compose
from retro_lab.corpus.tokenizer import ByteBPE
from retro_lab.errors import ArtifactError, ConfigurationError, CorpusError
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.retrieval.config import Value
from retro_lab.runs.answers import AnswerRecord, load_answers
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.trained_model import ModelSettings, open_model, save_model
from retro_lab.tasks import answer
from retro_lab.tasks.answer import drop_in_decoder
from retro_lab.training.module import RetroModule

PLACES = ["Paris", "Rome", "Lagos", "Lima", "Oslo", "Cairo"]
SIZE = SizeConfig(
    name="small", width=32, ffw_width=64, heads=2, head_size=16, layers=2, cca_layers=[1, 2], encoder_width=32,
    encoder_ffw_width=64, encoder_heads=2, encoder_head_size=16, encoder_layers=1,
)  # fmt: skip


def rows() -> list[dict[str, Any]]:
    return [
        {
            "question": f"where does {name} live",
            "answers": [f"the {place}", place],
            "target": place,
            "ctxs": [{"title": name, "text": f"{name} lives in {place}."}, {"title": "X", "text": "nothing"}],
        }
        for name, place in zip(["Ann", "Bo", "Cy", "Di", "Ed", "Flo"], PLACES, strict=True)
    ]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose two models know nothing yet, and a file of questions."""
    folder = tmp_path_factory.mktemp("questions")
    (folder / "train.json").write_text(json.dumps(rows()))
    (folder / "plain.jsonl").write_text(
        "\n".join(json.dumps({"question": row["question"], "answer": row["answers"]}) for row in rows())
    )
    texts = [f"question: {row['question']} \n answer: {row['target']}\n{row['ctxs']}" for row in rows()]
    tokenizer = ByteBPE(400, 1e5).make(texts)
    for name, k in (("baseline", 0), ("retro", 2)):
        settings = ModelSettings(
            size=SIZE if k else replace(SIZE, cca_layers=[]),
            model=ModelConfig(chunk_length=32, init_std=0.1),
            vocabulary_size=tokenizer.vocabulary_size,
            k=k,
            value=Value.neighbor_and_continuation,
            sequence_length=64,
        )
        torch.manual_seed(0)
        save_model(folder / "run" / name, settings.build().state_dict(), settings, tokenizer)
    return folder


def command(workplace: Path, name: str, *overrides: str) -> tuple[Any, RunFolder]:
    """The mini experiment on the file of questions, for learning and for answering."""
    arguments = [
        "+experiment=natural_questions_mini", f"task.start={workplace}/run", f"task.train={workplace}/train.json",
        f"task.validation={workplace}/train.json", "task.passages=2", "task.steps=60",
        "task.dropout=0", "data.batch_size=6", "optimizer.lr=1e-2", "schedule.warmup_steps=4", "trainer=cpu",
        "logger=none", "callbacks.checkpoint.every_n_train_steps=2", *overrides,
    ]  # fmt: skip
    return compose(arguments), RunFolder(workplace / "outputs" / name)


def record(folder: RunFolder, model: str) -> AnswerRecord:
    found = load_answers(folder.path / "questions" / model)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def answered(workplace: Path) -> RunFolder:
    config, folder = command(workplace, "whole", f"task.test={workplace}/train.json")
    answer.run(config, folder)
    return folder


def test_models_learn_the_answers(workplace: Path, answered: RunFolder) -> None:
    """From no right answer to all; each score is that of the answers written beside it."""
    before, untrained = command(workplace, "untrained", "task.steps=1", "optimizer.lr=1e-9", "task.models=[retro]")
    answer.run(before, untrained)
    assert max(entry.exact_match for entry in record(untrained, "retro").scores) == 0
    retro, baseline = (record(answered, name) for name in ("retro", "baseline"))
    assert {(entry.split, entry.k) for entry in retro.scores} == {
        (s, k) for s in ("validation", "test") for k in (0, 2)
    }
    assert {(entry.split, entry.k, entry.exact_match) for entry in baseline.scores} == {
        ("validation", 0, 1),
        ("test", 0, 1),
    }
    assert [entry.exact_match for entry in retro.scores if entry.k == 2] == [1, 1]
    assert retro.curve[0].bits_per_byte > 10 * retro.curve[-1].bits_per_byte
    for name, found in (("retro", retro), ("baseline", baseline)):
        for entry in found.scores:
            file = answered.path / "questions" / name / "answers" / f"{entry.split}-k={entry.k}.jsonl"
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            assert [line["question"] for line in lines] == [row["question"] for row in rows()]
            assert sum(line["right"] for line in lines) / len(lines) == entry.exact_match
            assert [line["right"] for line in lines] == [
                line["answer"] in PLACES and line["answer"] == place for line, place in zip(lines, PLACES, strict=True)
            ]
    table = (answered.path / "report" / "tables" / "answers.md").read_text()
    assert "| RETRO | " in table
    assert "| RETRO 7.5B (DPR retrieval) | " in table
    assert "45.5" in table


def test_the_fine_tuned_model_opens_like_any_other(answered: RunFolder) -> None:
    trained = open_model(answered.path / "questions")
    assert trained.folder.name == "retro"
    assert trained.settings.k == 2


def test_a_finished_run_is_reused(
    workplace: Path, answered: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained; only what was not asked for before is answered, and another recipe is refused."""
    monkeypatch.setattr(RetroModule, "training_step", None)
    before = record(answered, "retro")
    config, _ = command(workplace, "whole", f"task.test={workplace}/train.json", "task.k=[0,1]")
    answer.run(config, answered)
    assert record(answered, "retro").scores[:-2] == before.scores
    assert {entry.k for entry in record(answered, "retro").scores} == {0, 1, 2}
    assert capfd.readouterr().err.count("6 questions (") == 2
    for override in ("optimizer.lr=1e-3", "task.dropout=0.1", "task.passages=1"):
        config, _ = command(workplace, "whole", override)
        with pytest.raises(ConfigurationError, match="trained with other settings"):
            answer.run(config, answered)


def test_an_interrupted_training_goes_on_exactly(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the fifth step, it ends with the weights and the curve of one that was not, dropout included."""
    settings = ("task.steps=8", "task.dropout=0.2", "task.models=[retro]", "data.batch_size=4", "task.k=[]")
    config, whole = command(workplace, "undisturbed", *settings)
    answer.run(config, whole)
    config, folder = command(workplace, "killed", *settings)
    step = RetroModule.training_step

    def dies(module: RetroModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if module.global_step == 4:
            raise KeyboardInterrupt
        return step(module, batch, batch_idx)

    monkeypatch.setattr(RetroModule, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        answer.run(config, folder)
    monkeypatch.undo()
    answer.run(config, folder)
    weights, other = (load_file(one.path / "questions" / "retro" / "model.safetensors") for one in (whole, folder))
    assert all(torch.equal(value, other[name]) for name, value in weights.items())
    start = load_file(workplace / "run" / "retro" / "model.safetensors")
    assert not any(torch.equal(value, start[name]) for name, value in weights.items())  # all weights are trained
    assert record(whole, "retro").curve == record(folder, "retro").curve


def test_dropout_is_in_the_decoder_alone(workplace: Path) -> None:
    model = open_model(workplace / "run").model
    drop_in_decoder(model, 0.3)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert {rate for name, rate in rates.items() if name.startswith("encoder.")} == {0}
    assert {rate for name, rate in rates.items() if not name.startswith("encoder.")} == {0.3}
    assert any(".cca." in name for name in rates)


def test_questions_without_passages_are_answered_by_the_baseline_alone(workplace: Path) -> None:
    files = (f"task.train={workplace}/plain.jsonl", f"task.validation={workplace}/plain.jsonl", "task.steps=1")
    config, folder = command(workplace, "plain", *files)
    with pytest.raises(CorpusError, match=r"plain\.jsonl: question 1 .* has no passages"):
        answer.run(config, folder)
    config, folder = command(workplace, "closed", *files, "task.models=[baseline]")
    answer.run(config, folder)
    assert [entry.k for entry in record(folder, "baseline").scores] == [0]


def test_what_is_not_there_is_named(workplace: Path) -> None:
    config, folder = command(workplace, "none", f"task.train={workplace}/none.json")
    with pytest.raises(CorpusError, match=r"none\.json cannot be read"):
        answer.run(config, folder)
    config, folder = command(workplace, "none", f"task.start={workplace}/nothing")
    with pytest.raises(ArtifactError, match="nothing holds no trained baseline"):
        answer.run(config, folder)
    with pytest.raises(ConfigurationError, match=r"task\.models must name some of .*, not \['gpt'\]"):
        command(workplace, "none", "task.models=[gpt]")


def test_the_recipe_is_the_papers() -> None:
    """Sec. 4.3: 25,000 steps of 128 questions with 20 passages, from 1e-6 down to 1e-7 after 750 steps of warm-up."""
    config = compose(["+experiment=natural_questions"])
    task = config.task
    assert (task.steps, config.data.batch_size, task.passages) == (25_000, 128, 20)
    peak, ratio = config.optimizer.lr, config.schedule.final_ratio
    assert (peak, peak * ratio, config.schedule.warmup_steps) == (1e-6, pytest.approx(1e-7), 750)
    assert task.models == ["baseline", "retro"]
