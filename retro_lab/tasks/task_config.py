"""The `task` group: what a command does, and what each task is told.

Each task is the module of its name in `retro_lab.tasks`.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from retro_lab.errors import ConfigurationError
from retro_lab.ranges import DROPPED, NOT_NEGATIVE, PORT, POSITIVE, SEED, SHARE, check_ranges
from retro_lab.runs.folder import MODELS


class Task(StrEnum):
    """What a command does. Each task is the module of the same name in `retro_lab.tasks`."""

    answer = "answer"
    build = "build"
    compare = "compare"
    dashboard = "dashboard"
    evaluate = "evaluate"
    export = "export"
    generate = "generate"
    inspect = "inspect"
    plan = "plan"
    report = "report"
    serve = "serve"
    train = "train"
    verify = "verify"
    zero_shot = "zero_shot"

    @property
    def trains(self) -> bool:
        """Whether it trains models."""
        return self in (Task.answer, Task.compare, Task.train)

    @property
    def has_run_folder(self) -> bool:
        """Whether it works on a run folder, rather than only on the artifact store or the screen."""
        return self not in (Task.build, Task.plan, Task.verify)

    @property
    def once_per_sweep(self) -> bool:
        """Whether it runs once for a sweep, in its folder, rather than for every cell."""
        return self in (Task.dashboard, Task.report)


LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses that this machine alone can reach."""


class InspectedSplit(StrEnum):
    """The splits that `task=inspect` can show chunks of."""

    train = "train"
    validation = "validation"
    test = "test"


@dataclass(kw_only=True)
class TaskConfig:
    """A task by name."""

    name: Task
    """What the command does."""


@dataclass(kw_only=True)
class CompareConfig(TaskConfig):
    """Train RETRO and its baseline twin on the same tokens, evaluate both, and write a report."""

    name: Task = Task.compare
    longer_baseline: bool = True
    """Train a second baseline for as many more tokens as give it RETRO's training FLOPs (from scratch only)."""


@dataclass(kw_only=True)
class AnswerConfig(TaskConfig):
    """Fine-tune trained models to answer questions from passages, and count the right answers (Sec. 4.3).

    Batch, learning rate and its schedule are those of `data`, `optimizer` and `schedule`; size and tokenizer are those
    of the models.
    """

    name: Task = Task.answer
    start: str
    """Folder of the finished run that has the trained models."""
    train: str
    """File of questions to learn from: a JSON array of the Fusion-in-Decoder release, or JSON lines."""
    validation: str
    """File of questions to follow the training with, and to answer."""
    test: str | None = None
    """File of questions to answer, too."""
    models: list[str] = field(default_factory=lambda: ["baseline", "retro"])
    """Models of that run to fine-tune; the baseline answers without passages (`closed book`)."""
    passages: int = 20
    """Passages of each question that RETRO learns and answers with."""
    k: list[int] = field(default_factory=lambda: [0])
    """Other numbers of passages to answer with."""
    steps: int = 25_000
    """Optimizer steps."""
    dropout: float = 0.1
    """Dropout in the decoder alone. The paper does not state the rate."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigurationError: A number is out of its range, or `models` names none, or an unknown one.
        """
        check_ranges("task", self, passages=POSITIVE, k=NOT_NEGATIVE, steps=POSITIVE, dropout=DROPPED)
        if not self.models or (unknown := set(self.models) - set(MODELS)):
            raise ConfigurationError(
                f"task.models must name some of {', '.join(MODELS)}, not {sorted(unknown) or '[]'}."
            )


@dataclass(kw_only=True)
class ExportConfig(TaskConfig):
    """Write a trained model as a folder that transformers loads: weights, configuration, tokenizer, model card."""

    name: Task = Task.export
    model: str | None = None
    """Model of the run, such as `retro` or `baseline`; null takes the RETRO, or the baseline if there is no RETRO."""
    folder: str | None = None
    """Folder to write; null is `export` in the model's own."""
    shard_bytes: float = 5e9
    """Largest size of a file of weights; what is larger is divided into several."""
    overwrite: bool = False
    """Replace the export of another model. An older one of the same model is always replaced, and anything else
    never."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigurationError: A number is out of its range, or there are no models of that name.
        """
        check_ranges("task", self, shard_bytes=POSITIVE)
        _check_model(self.model)


@dataclass(kw_only=True)
class GenerateConfig(TaskConfig):
    """Continue prompts with a model of a run folder, which retrieves from the run's database as it writes."""

    name: Task = Task.generate
    prompt: str | None = None
    """Text to continue. `prompt=TEXT` on the command line gives it as it stands, whatever is in it."""
    prompts: str | None = None
    """File of prompts to continue: one a line, or JSON lines with `prompt` if it ends in .jsonl."""
    model: str | None = None
    """Model of the run: `retro`, `longer_baseline` or `baseline`; null takes the RETRO if there is one."""
    max_tokens: int = 128
    """Most tokens to add to each prompt."""
    temperature: float = 0.0
    """What logits are divided by before a token is drawn; 0 takes the most likely token."""
    top_k: int | None = None
    """Draw from this many of the most likely tokens; null draws from all."""
    top_p: float | None = None
    """Draw from the fewest most likely tokens that together have this probability; null draws from all."""
    seed: int | None = None
    """Of the draws; null is the run's."""
    stop: list[str] = field(default_factory=list)
    """Texts at the first of which a continuation ends, without it."""
    k: int | None = None
    """Neighbors of each chunk; null takes as many as in training, 0 turns retrieval off."""
    retrieve_every: int | None = None
    """Tokens from one retrieval to the next, up to a chunk's; null retrieves at the end of each chunk."""
    neighbors: list[str] = field(default_factory=list)
    """Texts that every chunk reads as its neighbors, in place of what a search finds."""
    drafts: bool = False
    """Propose what follows in the neighbors, and verify it in one pass: the same text, faster where it copies."""
    show_neighbors: bool = False
    """Show the text beside the neighbors that it was written from."""
    output: str | None = None
    """File of JSON lines to write, a line for each prompt, in place of printing the texts."""
    batch_size: int = 8
    """Texts that are written together."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigurationError: A number is out of its range, there is no such model, there is not one source of
                prompts, or settings contradict each other.
        """
        check_ranges(
            "task",
            self,
            max_tokens=POSITIVE,
            temperature=NOT_NEGATIVE,
            top_k=POSITIVE,
            top_p=SHARE,
            seed=SEED,
            k=NOT_NEGATIVE,
            retrieve_every=POSITIVE,
            batch_size=POSITIVE,
        )
        _check_model(self.model)
        if self.prompt is None and self.prompts is None:
            raise ConfigurationError("task=generate continues a text; give one with prompt=TEXT or task.prompts=FILE.")
        if self.prompt is not None and self.prompts is not None:
            raise ConfigurationError("prompt and task.prompts both say what to continue; give one of them.")
        if not _is_unicode([self.prompt or "", *self.stop, *self.neighbors]):
            raise ConfigurationError(
                "prompt, task.stop and task.neighbors must be UTF-8; the terminal sent other bytes."
            )
        if self.neighbors and self.k:
            raise ConfigurationError(
                "task.neighbors takes the place of a search for task.k neighbors; give one of them."
            )
        for name in ("stop", "neighbors"):
            if "" in getattr(self, name):
                raise ConfigurationError(f"task.{name} has an empty text; leave it out.")
        for name in ("top_k", "top_p"):
            if getattr(self, name) is not None and not self.temperature:
                raise ConfigurationError(
                    f"task.{name}={getattr(self, name)} chooses among tokens that are drawn, and task.temperature=0 "
                    "takes the most likely one; set a temperature, such as 1."
                )


def _is_unicode(texts: list[str]) -> bool:
    """Tell whether texts are free of the lone surrogates that Python puts for bytes that it cannot read."""
    return not any("\ud800" <= character <= "\udfff" for text in texts for character in text)


@dataclass(kw_only=True)
class InspectConfig(TaskConfig):
    """Show chunks of a split beside their neighbors, and of a finished run write pages of their whole documents."""

    name: Task = Task.inspect
    split: InspectedSplit = InspectedSplit.validation
    """Split to take the chunks from. Pages are written of held-out documents only."""
    document: str | None = None
    """Id of the document to take the chunks from; null takes them from the whole split."""
    chunk: int | None = None
    """Id of the chunk to show; null shows `count` chunks, evenly spaced."""
    count: int = 3
    """Number of chunks to show."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigurationError: A range is left, or a chunk and a document are both named.
        """
        check_ranges("task", self, count=POSITIVE)
        if self.chunk is not None and self.document is not None:
            raise ConfigurationError("task.chunk and task.document both say what to show; give one of them.")


@dataclass(kw_only=True)
class PlanConfig(TaskConfig):
    """Estimate the cost of a build and a training run by arithmetic alone."""

    name: Task = Task.plan
    embedding_chunks_per_second: float = 1728
    """Chunks embedded each second on one device. Default: BERT-large on an A100 (Wang et al. 2024)."""
    peak_tflops: float = 989
    """Peak rate of one training device in the training precision. Default: H100, bfloat16, dense."""
    gpu_memory: float = 80e9
    """Bytes of memory of one training device. Default: H100."""
    utilization: float = 0.4
    """Share of the peak rate that training reaches, from 0 to 1."""
    embedding_width: int = 768
    """Width of a chunk's embedding. Default: BERT-base."""
    queries_per_second: float = 250
    """Chunks searched each second by one CPU core in one index. Default: 4 ms each, as Wang et al. 2024 report."""
    tokens_per_document: float = 983
    """Mean length of a document. Default: the paper's evaluation database (Table 8, books at 4%)."""
    index_memory: float = 1e12
    """Bytes of memory for one index. The database is divided into shards whose indexes fit."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(
            "task",
            self,
            embedding_chunks_per_second=POSITIVE,
            peak_tflops=POSITIVE,
            gpu_memory=POSITIVE,
            utilization=SHARE,
            embedding_width=POSITIVE,
            queries_per_second=POSITIVE,
            tokens_per_document=POSITIVE,
            index_memory=POSITIVE,
        )


@dataclass(kw_only=True)
class ServeConfig(TaskConfig):
    """Serve a model of a run folder and its database over HTTP: search, generation, and a page to try both."""

    name: Task = Task.serve
    model: str | None = None
    """Model of the run: `retro`, `longer_baseline` or `baseline`; null takes the RETRO if there is one."""
    host: str = "127.0.0.1"
    """Address to listen at. The default is reached from this machine alone; there are no passwords."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Names by which clients call this server, besides those of loopback; `*` allows all. Needed for another `host`."""
    max_texts: int = 64
    """Most texts of a request."""
    max_characters: int = 20_000
    """Most characters of a text."""
    max_tokens: int = 512
    """Most tokens that a prompt is continued by."""
    max_body_bytes: int = 1_000_000
    """Most bytes of a request."""
    max_waiting: int = 64
    """Most requests that wait for their turn; others are told to try again."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigurationError: A number is out of its range, there is no such model, or the server is to listen to a
                network without a name that its clients call it by.
        """
        check_ranges(
            "task",
            self,
            port=PORT,
            max_texts=POSITIVE,
            max_characters=POSITIVE,
            max_tokens=POSITIVE,
            max_body_bytes=POSITIVE,
            max_waiting=POSITIVE,
        )
        _check_model(self.model)
        if self.host not in LOOPBACK and not self.allowed_hosts:
            raise ConfigurationError(
                f"task.host={self.host} lets others on the network use this run without a password; if you want that, "
                "name the host names that they call this machine by in task.allowed_hosts."
            )


@dataclass(kw_only=True)
class ZeroShotConfig(TaskConfig):
    """Score the trained models of a run folder on tasks of EleutherAI's lm-eval, with live retrieval."""

    name: Task = Task.zero_shot
    tasks: list[str] = field(default_factory=lambda: ["lambada_openai"])
    """Tasks: their names in lm-eval, or YAML files of your own in its format."""
    k: list[int] | None = None
    """Neighbors of each chunk to score a RETRO with; 0 turns retrieval off. null takes `evaluation.k` and the k that it
    was trained with."""
    limit: int | None = None
    """Questions of each task; null takes all."""
    few_shot: int | None = None
    """Examples before each question; null leaves it to the task."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigurationError: A number is out of its range, or no task is named.
        """
        check_ranges("task", self, k=NOT_NEGATIVE, limit=POSITIVE, few_shot=NOT_NEGATIVE)
        if not self.tasks:
            raise ConfigurationError("task.tasks=[] names nothing to score; name a task of lm-eval or a YAML file.")
        if self.k == []:
            raise ConfigurationError("task.k=[] scores nothing; name at least one number of neighbors.")


def _check_model(name: str | None) -> None:
    """Check the name of a run's model.

    Raises:
        ConfigurationError: There is no model of that name.
    """
    if name not in (None, *MODELS):
        raise ConfigurationError(f"task.model must be one of {', '.join(MODELS)}, not {name}.")
