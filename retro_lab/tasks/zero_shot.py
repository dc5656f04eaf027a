"""`task=zero_shot`: score the trained models of a run folder on tasks of EleutherAI's lm-eval, with live retrieval.

lm-eval finds no models of other packages, so its command cannot call ours; this one calls `simple_evaluate`.
"""

import contextlib
import difflib
import io
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro_lab import console
from retro_lab.errors import ArtifactError, ConfigurationError
from retro_lab.evaluation.reader import TextReader
from retro_lab.report.tables import Column, Table, Value
from retro_lab.runs.folder import MODELS, RunFolder
from retro_lab.runs.identity import check_scored
from retro_lab.runs.provenance import provenance
from retro_lab.runs.records import Provenance
from retro_lab.runs.trained_model import has_model
from retro_lab.runs.zero_shot import RESULTS_NAME, ZERO_SHOT_FOLDER, ZeroShotScore, load_zero_shot, write_zero_shot
from retro_lab.tasks.assemble import model_identity
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.checks import check_evaluation
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.opened import open_with_inputs
from retro_lab.tasks.task_config import ZeroShotConfig

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

DRAWS = 1000
"""Draws of lm-eval's bootstrap, for metrics without a standard error in closed form."""
ONE_PROCESS = "DISABLE_MULTIPROC"
"""Environment variable that has lm-eval draw in this process."""
LIKE = 0.6
"""Likeness, of at most 1, from which a task's name passes for another mistyped."""


def run(config: RunConfig, folder: RunFolder) -> None:
    """Score each model of the run folder with every requested k, and print and write the scores; only rank 0 does so.

    Raises:
        ArtifactError: The run folder holds no trained model.
        ConfigurationError: lm-eval is not installed or cannot load a task, or a model was trained with other settings
            or data than it would be scored with.
    """
    if not console.is_main_process():
        return
    task = config.task
    assert isinstance(task, ZeroShotConfig)
    check_evaluation(config)
    names = [name for name in MODELS if has_model(folder.path / name)]
    if not names:
        raise ArtifactError(f"{folder.path} holds no trained model; train one with: {folder.command}")
    with folder.held():
        manager = _task_manager(task.tasks)
        _load(manager, task.tasks)
        with Inputs(config) as inputs:
            scores = {score.measured: score for score in load_zero_shot(folder.path)}
            added = [score for name in names for score in _score(config, folder, name, inputs, manager)]
            scores |= {score.measured: score for score in added}
            write_zero_shot(folder.path, list(scores.values()), _table(list(scores.values())).to_csv())
    console.output.print(_table(added).to_rich())
    console.status("zero-shot", str(folder.path / ZERO_SHOT_FOLDER / RESULTS_NAME))


def _score(
    config: RunConfig, folder: RunFolder, name: str, inputs: Inputs, manager: "TaskManager"
) -> Iterator[ZeroShotScore]:
    """Score one model with every k."""
    from lm_eval import simple_evaluate

    from retro_lab.evaluation.lm_eval_model import RetroLM

    task = config.task
    assert isinstance(task, ZeroShotConfig)
    opened = open_with_inputs(config, folder.path / name, inputs)
    trained, own = opened.trained, opened.trained.settings.k
    with_k = replace(config, retrieval=replace(config.retrieval, k=own))
    check_scored(trained.folder, model_identity(with_k, folder, inputs))
    for k in _neighbors(task, config, own):
        console.status("zero-shot", f"{name} on {', '.join(task.tasks)}; k = {k}")
        generator = opened.generator(k)
        reader = TextReader(
            trained.model,
            opened.live(k) if k else None,
            trained.settings.value,
            k=k,
            marker=trained.tokenizer.document_marker,
            length=config.data.sequence_length,
            stride=config.evaluation.stride,
            batch_size=config.evaluation.batch_size,
            precision=opened.precision,
        )
        answers = RetroLM(reader, generator, config.seed)
        with _quietly():
            found = simple_evaluate(
                answers,
                tasks=list(task.tasks),
                num_fewshot=task.few_shot,
                limit=task.limit,
                bootstrap_iters=DRAWS,
                log_samples=False,
                task_manager=manager,
            )
        database = opened.database.description if k else None
        yield from _scores(found, name, k, database)


def _neighbors(task: ZeroShotConfig, config: RunConfig, own: int) -> list[int]:
    """Return the values of k to score a model with that was trained with `own` neighbors."""
    if not own:
        return [0]
    return sorted({own, *config.evaluation.k} if task.k is None else {*task.k})


def _scores(found: Mapping[str, Any], model: str, k: int, database: str | None) -> Iterator[ZeroShotScore]:
    """Return what lm-eval measured, a score for each metric."""
    about = _provenance()
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, _, name = key.partition(",")
            if not name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{name}")
            yield ZeroShotScore(
                model=model,
                k=k,
                database=database,
                task=task,
                version=None if (version := found["versions"].get(task)) is None else str(version),
                few_shot=int(found["n-shot"].get(task) or 0),
                samples=int(metrics.get("sample_len") or found["n-samples"].get(task, {}).get("effective", 0)),
                metric=metric,
                filter=name,
                value=float(value),
                standard_error=error if isinstance(error, float) and math.isfinite(error) else None,
                provenance=about,
            )


def _provenance() -> Provenance:
    about = provenance()
    return replace(about, versions=about.versions | {"lm_eval": _version()})


def _table(scores: list[ZeroShotScore]) -> Table:
    columns = (
        Column("model", "Model", numeric=False),
        Column("k", "k"),
        Column("task", "Task", numeric=False),
        Column("version", "Version", numeric=False, terminal=False),
        Column("few_shot", "Few shot"),
        Column("samples", "Questions"),
        Column("metric", "Metric", numeric=False),
        Column("filter", "Filter", numeric=False, terminal=False),
        Column("value", "Value", _number),
        Column("standard_error", "Standard error", _number),
        Column("database", "Database", numeric=False, terminal=False),
        Column("lm_eval", "lm-eval", numeric=False, terminal=False),
        Column("command", "Command", numeric=False, terminal=False),
    )
    rows: list[tuple[Value, ...]] = [
        (
            score.model, score.k, score.task, score.version, score.few_shot, score.samples, score.metric, score.filter,
            score.value, score.standard_error, score.database, score.provenance.versions["lm_eval"],
            score.provenance.command,
        )
        for score in scores
    ]  # fmt: skip
    return Table("Zero-shot, measured by lm-eval", columns, tuple(rows))


def _number(value: float) -> str:
    return f"{value:.4g}"


def _task_manager(tasks: list[str]) -> "TaskManager":
    """Return lm-eval's index of tasks: the shipped ones are read, which takes seconds, if one of them is named.

    Raises:
        ConfigurationError: lm-eval is not installed, or there is no task of this name.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigurationError("task=zero_shot needs the extra `eval`: pip install 'retro_lab[eval]'.") from error
    names = [name for name in tasks if not _is_file(name)]
    manager = TaskManager(include_defaults=bool(names))
    for name in names:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, manager.all_tasks, 1, LIKE)
            advice = f"did you mean {close[0]}?" if close else "name a task of lm-eval, or a YAML file."
            raise ConfigurationError(f"task.tasks: lm-eval {_version()} has no task {name}; {advice}")
    return manager


def _load(manager: "TaskManager", tasks: list[str]) -> None:
    """Load the tasks once before anything is scored: their files may be wrong, or their data out of reach.

    Raises:
        ConfigurationError: lm-eval cannot load a task.
    """
    for name in tasks:
        try:
            with _quietly():
                manager.load([name])
        except Exception as error:  # anything that lm-eval, datasets or a task's own code raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigurationError(f"task.tasks: lm-eval cannot load {name} ({reason}).") from error


def _is_file(name: str) -> bool:
    """Return whether a task is a file of the user's own.

    Raises:
        ConfigurationError: It is meant to be one, and there is none.
    """
    if Path(name).suffix not in (".yaml", ".yml"):
        return False
    if not Path(name).is_file():
        raise ConfigurationError(f"task.tasks: there is no file {name}.")
    return True


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep lm-eval's bootstrap in this process, as a fork would not copy the threads of its libraries, and silent."""
    before = os.environ.get(ONE_PROCESS)
    os.environ[ONE_PROCESS] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # our own progress goes to standard error
            yield
    finally:
        os.environ.pop(ONE_PROCESS)
        if before is not None:
            os.environ[ONE_PROCESS] = before


def _version() -> str:
    return metadata.version("lm_eval")
