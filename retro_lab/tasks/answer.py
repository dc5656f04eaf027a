"""`task=answer`: fine-tune the models of a finished run to answer questions from passages, and count right answers.

The recipe is that of Borgeaud et al. 2022, Sec. 4.3: all weights are trained, on the answer alone. Everything that
trains a model from scratch trains here too: steps, schedule, checkpoints, resuming, devices.
"""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate

from retro_lab import console
from retro_lab.artifacts.disk import write_file
from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.corpus.questions import read_questions
from retro_lab.cost.flops import TRAINING_TO_FORWARD
from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.answers import AnsweringModule, QuestionBatches, answer_text, is_exact_match, line_ends
from retro_lab.evaluation.intervals import share_interval
from retro_lab.evaluation.scoring import ScoredData
from retro_lab.model.blocks import Residual
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.sharding import whole_weights
from retro_lab.retrieval.questions import Questions
from retro_lab.runs.answers import (
    QUESTIONS_FOLDER,
    AnswerRecord,
    ExactMatch,
    load_answers,
    predictions,
    write_answers,
    write_predictions,
)
from retro_lab.runs.folder import RunFolder
from retro_lab.runs.identity import check_identity, write_identity
from retro_lab.runs.provenance import provenance
from retro_lab.runs.records import Parameters
from retro_lab.runs.trained_model import TrainedModel, open_model, save_model, weights_checksum
from retro_lab.tasks.assemble import build_trainer, in_folder, learning_rates, observers
from retro_lab.tasks.checks import check_batch, check_trainer
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.evaluate import mean_token_flops
from retro_lab.tasks.task_config import AnswerConfig
from retro_lab.training.batches import accumulated_batches
from retro_lab.training.checkpoints import resumable
from retro_lab.training.data import RetroDataModule
from retro_lab.training.devices import devices_used
from retro_lab.training.loggers import build_loggers, describe_run, finish_loggers
from retro_lab.training.module import RetroModule
from retro_lab.training.precision import checked_precision
from retro_lab.training.sharding import ShardedStrategy
from retro_lab.training.training import fit, stopped_by

DECIDING = ("optimizer", "schedule", "data")
"""Groups of which every setting decides the model, but for those below."""
UNDECIDING = ("tokens", "max_skipped_steps", "workers", "micro_batch_size", "sequence_length")


def run(config: RunConfig, folder: RunFolder) -> None:
    """Fine-tune each model of `task.models`, answer the questions of each file with it, and print the table.

    Raises:
        ArtifactError: There is no such trained model.
        ConfigurationError: The folder holds models that were fine-tuned otherwise, or a model is a RETROfit of a
            pretrained decoder.
        CorpusError: A file of questions is missing or is not one.
    """
    task = config.task
    assert isinstance(task, AnswerConfig)
    check_trainer(config.trainer)
    check_batch(config, devices_used(config.trainer))
    for file in (task.train, task.validation, *([task.test] if task.test else [])):
        next(read_questions(Path(file), 0))  # before anything that takes long
    with folder.held():
        starts = {name: open_model(task.start, name) for name in task.models}
        for name, start in starts.items():
            if start.settings.backbone is not None:
                raise ConfigurationError(
                    f"{start.folder} is a RETROfit of a pretrained decoder, and task=answer fine-tunes models of the "
                    "paper's decoder only."
                )
            check_identity(_folder(folder, name), _identity(config, task, start))
        folder.note()
        records = [_answer(name, config, task, start, folder) for name, start in starts.items()]
        _report(records, folder)


def _answer(name: str, config: RunConfig, task: AnswerConfig, start: TrainedModel, folder: RunFolder) -> AnswerRecord:
    """Fine-tune one model, skipping whatever is already done, and answer all questions."""
    path = _folder(folder, name)
    files = {"validation": task.validation} | ({"test": task.test} if task.test else {})
    questions = {split: _questions(Path(file), start, task) for split, file in files.items()}
    record = load_answers(path)
    if record is None:
        record = _fine_tune(name, config, task, start, path, questions["validation"])
    else:
        console.status(name, f"reusing {path}, fine-tuned on {record.questions:,} questions")
    for split, asked in questions.items():
        file = Path(files[split])
        checksum = file_checksum(file)
        for k in _ks(start, task):
            if record.score(split, k, checksum) and predictions(path, split, k).is_file():
                continue
            right = _count(config, path, asked, split, k)
            interval = share_interval(right)
            entry = ExactMatch(
                split=split,
                file=file.name,
                sha256=checksum,
                questions=len(asked),
                cut_questions=asked.cut_questions,
                k=k,
                exact_match=float(right.mean()),
                low=interval.low if interval else None,
                high=interval.high if interval else None,
            )
            others = tuple(known for known in record.scores if (known.split, known.k) != (split, k))
            record = replace(record, scores=(*others, entry))
            if console.is_main_process():
                write_answers(path, record)
    return record


def _fine_tune(
    name: str, config: RunConfig, task: AnswerConfig, start: TrainedModel, path: Path, validation: Questions
) -> AnswerRecord:
    k = _passages(start, task)
    train = _questions(Path(task.train), start, task)
    tokens_per_step = (train.length + 1) * config.data.batch_size
    data = RetroDataModule(
        train,
        QuestionBatches(validation, config.evaluation.batch_size, k),
        batch_size=config.data.batch_size,
        k=k,
        seed=config.seed,
        workers=config.data.workers,
        overfit_batches=config.data.overfit_batches,
        neighbor_dropout=config.data.neighbor_dropout if k else 0.0,
    )
    flops = TRAINING_TO_FORWARD * mean_token_flops(start.settings, k, train.length)
    watching = observers(config, path, data.documents, tokens_per_step=tokens_per_step, flops_per_token=flops)
    accumulated = accumulated_batches(
        config.data.batch_size, config.data.micro_batch_size, devices_used(config.trainer)
    )
    loggers = build_loggers(in_folder(config.logger, path), path)
    trainer = build_trainer(config, path, task.steps, watching.callbacks, loggers, accumulated=accumulated)
    pl.seed_everything(config.seed, verbose=False)
    module = _module(config, task, start, sharded=isinstance(trainer.strategy, ShardedStrategy))
    parameters = Parameters(**module.model.parameter_counts())
    console.status(
        name,
        f"{start.folder}, {parameters.total:,} parameters: {task.steps:,} steps of {config.data.batch_size} of "
        f"{len(train):,} questions with {k} passages",
    )
    if checkpoint := resumable(path):
        console.status("resuming", f"from {checkpoint}")
    describe_run(trainer.loggers, asdict(config), {"model": name, "start": str(start.folder), "passages": k})
    if trainer.is_global_zero:
        write_identity(path, _identity(config, task, start))
    fit(trainer, module, data, path)
    record = AnswerRecord(
        model=name,
        start=str(start.folder),
        parameters=parameters,
        passages=k,
        questions=len(train),
        steps=trainer.global_step,
        stopped=stopped_by(trainer),
        seconds=round(watching.clock.seconds, 1),
        seed=config.seed,
        curve=watching.curve.curve,
        scores=(),
        provenance=provenance(),
    )
    weights = whole_weights(module.model)
    if trainer.is_global_zero:
        save_model(path, weights, start.settings, start.tokenizer)
        write_answers(path, record)
    finish_loggers(loggers)
    trainer.strategy.barrier()  # before other ranks read what rank 0 wrote
    return record


def _module(config: RunConfig, task: AnswerConfig, start: TrainedModel, *, sharded: bool) -> RetroModule:
    """Build what trains the model; a sharded one begins without weights, which its devices then divide."""
    with torch.device("meta") if sharded else nullcontext():
        model = start.settings.build()
    model.checkpoint_activations(config.compute.checkpoint_activations)
    drop_in_decoder(model, task.dropout)
    k = _passages(start, task)
    return RetroModule(
        model,
        k,
        [k],
        instantiate(config.optimizer),
        learning_rates(config, task.steps),
        config.seed,
        start=start.model.state_dict(),
        compile=config.compute.compile,
    )


def drop_in_decoder(model: LanguageModel, rate: float) -> None:
    """Set the dropout of the decoder's blocks, chunked cross-attention included, and none in the encoder."""
    for name, module in model.named_modules():
        if isinstance(module, Residual):
            module.dropout.p = 0.0 if name.startswith("encoder.") else rate


def _count(config: RunConfig, path: Path, questions: Questions, split: str, k: int) -> np.ndarray:
    """Answer all questions with the model in `path`, write the answers, and return which are right, bool [Q]."""
    trained = open_model(path)
    console.status("answering", f"{len(questions):,} questions ({split}) with {path.name} and {k} passages")
    trainer = build_trainer(config, path, steps=1, callbacks=())
    module = AnsweringModule(trained.model, k, line_ends(trained.tokenizer))
    batches = QuestionBatches(questions, config.evaluation.batch_size, k)
    with torch.no_grad():  # FSDP gathers weights into tensors that inference mode would not let it reuse
        trainer.validate(module, datamodule=ScoredData(batches), verbose=False)
    answers = [answer_text(trained.tokenizer, tokens) for tokens in module.answers.compute()]
    asked = list(zip(questions.asked, answers, strict=True))
    right = np.array([is_exact_match(answer, one.answers) for one, answer in asked])
    if console.is_main_process():
        rows = ((one.question, answer, bool(good)) for (one, answer), good in zip(asked, right, strict=True))
        write_predictions(path, split, k, rows)
    return right


def _questions(file: Path, start: TrainedModel, task: AnswerConfig) -> Questions:
    """Read a file, with as many passages as the model is trained and scored with."""
    settings, k = start.settings, max(_ks(start, task))
    return Questions(
        read_questions(file, k),
        start.tokenizer,
        chunk_length=settings.model.chunk_length,
        neighbor_length=settings.value.length(settings.model.chunk_length),
        k=k,
        with_documents=settings.model.document_masks,
    )


def _passages(start: TrainedModel, task: AnswerConfig) -> int:
    """Return the passages to train a model with; a baseline reads none."""
    return task.passages if start.settings.size.cca_layers else 0


def _ks(start: TrainedModel, task: AnswerConfig) -> list[int]:
    """Return the numbers of passages to answer with."""
    k = _passages(start, task)
    return sorted({k, *task.k}) if k else [0]


def _folder(folder: RunFolder, name: str) -> Path:
    return folder.path / QUESTIONS_FOLDER / name


def _identity(config: RunConfig, task: AnswerConfig, start: TrainedModel) -> dict[str, Any]:
    """Return everything that decides a fine-tuned model, which is resumed or reused only if this is the same."""
    precision = checked_precision(config.trainer.get("precision"), str(config.trainer.get("accelerator", "auto")))
    settings = asdict(config)
    groups = {
        group: {key: value for key, value in settings[group].items() if key not in UNDECIDING} for group in DECIDING
    }
    return {
        **groups,
        "start": weights_checksum(start.folder),
        "train": file_checksum(Path(task.train)),
        "task": {"passages": _passages(start, task), "steps": task.steps, "dropout": task.dropout},
        "seed": config.seed,
        "trainer": {"precision": precision},
    }


def _report(records: list[AnswerRecord], folder: RunFolder) -> None:
    """Print the table, and write it into the run's report."""
    from retro_lab.report.answers import answers_table

    if not console.is_main_process():
        return
    table = answers_table(records)
    console.output.print(table.to_rich(), end="\n\n")
    tables = folder.path / "report" / "tables"
    write_file(tables / "answers.md", table.to_markdown().encode())
    write_file(tables / "answers.csv", table.to_csv().encode())
    console.status("tables", str(tables))
    console.status("models", ", ".join(str(_folder(folder, record.model)) for record in records))
