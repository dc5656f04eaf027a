"""`task=plan`: the cost of a model, a training run and a database, before anything is spent.

Nothing is built, and nothing is read but the configuration of a pretrained decoder: the model is built on the meta
device, and everything else is arithmetic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group
from rich.text import Text

from retro_lab import console
from retro_lab.cost.flops import TRAINING_TO_FORWARD, Flops, device_hours, required_flops
from retro_lab.cost.memory import ADAMW_MOMENTS, activation_bytes, replicated_state, sharded_state
from retro_lab.cost.parameters import Parameters
from retro_lab.model.config import Matrices, ModelConfig, SizeConfig
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks.assemble import base_model, model_parameters
from retro_lab.tasks.checks import check_base, check_batch, check_trainer
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.plan_database import database_sections, datastore_section
from retro_lab.tasks.plan_fit import Gpus, fitting
from retro_lab.tasks.plan_tables import BYTES, SI_PREFIXES, scaled, section
from retro_lab.tasks.task_config import PlanConfig
from retro_lab.training.config import Init
from retro_lab.training.devices import device_count
from retro_lab.training.precision import PRECISIONS, SHARDED_PRECISIONS, checked_precision

PAPER_VOCABULARY = 128_000
"""Vocabulary to count with if the tokenizer's is unknown before it is built (Borgeaud et al. 2022, Sec. 2.1)."""
GUESSED_DEVICES = 8
"""GPUs of a node if `trainer.devices` is not a number."""
LABELS = {
    "self_attention": "self-attention",
    "feed_forward": "feed-forward",
    "chunked_cross_attention": "chunked cross-attention",
    "encoder": "neighbor encoder",
    "readout": "read-out",
    "non_embedding": "without embeddings, as in Table 2",
}
"""Display names of the parts of a model whose keys are not words."""


def run(config: RunConfig, folder: RunFolder) -> None:
    """Print parameters, FLOPs, memory and GPU hours of training, and the cost of the database if there is one.

    Raises:
        ConfigurationError: a value, or a combination of values, that cannot work.
    """
    plan, task = Plan.of(config), config.task
    assert isinstance(task, PlanConfig)
    sections = [_parameters(plan), _flops(plan), _training(plan, config, task), _memory(plan, config, task)]
    if plan.k:
        gpus, _ = _gpus(config.trainer)
        sections += database_sections(config, task, plan.vocabulary, gpus)
    if config.evaluation.knn_lm.k:
        sections.append(datastore_section(config))
    console.output.print(Group(*sections))


@dataclass(frozen=True)
class Plan:
    """The model and the shape of its training data."""

    size: SizeConfig
    """Without layers in P if there is no retrieval, as in training."""
    model: ModelConfig
    vocabulary: int
    vocabulary_source: str
    """Where the vocabulary size comes from."""
    k: int
    neighbor_length: int
    sequence_length: int
    tokens: float
    """Of the training run."""
    parameters: Parameters
    base: Matrices | None
    """Of a pretrained decoder."""
    retrofit: bool
    """Whether the parameters for retrieval are new to a trained model."""

    @classmethod
    def of(cls, config: RunConfig) -> "Plan":
        """Check the configuration and count its model's parameters.

        Raises:
            ConfigurationError: a value, or a combination of values, that cannot work.
        """
        size, model = config.size, config.model
        k, n = config.retrieval.k, config.data.sequence_length
        vocabulary, source = getattr(config.tokenizer, "vocabulary_size", None), "tokenizer.vocabulary_size"
        if vocabulary is None:
            vocabulary, source = PAPER_VOCABULARY, "the paper's; the tokenizer's is known once it is built"
        base = base_model(config)
        if base is not None:
            check_base(config)
            vocabulary, source = base.vocabulary_size, f"of {base.name}"
        check_trainer(config.trainer, accelerator="gpu")  # planned here, trained elsewhere
        if not k:
            size = replace(size, cca_layers=[])
        return cls(
            size=size,
            model=model,
            vocabulary=vocabulary,
            vocabulary_source=source,
            k=k,
            neighbor_length=config.retrieval.value.length(model.chunk_length),
            sequence_length=n,
            tokens=config.schedule.tokens,
            parameters=model_parameters(config, size, vocabulary),
            base=base.matrices if base is not None else None,
            retrofit=config.init.name is Init.retrofit and k > 0,
        )

    def flops_per_token(self, k: int) -> Flops:
        """Count the forward pass with `k` neighbors, for the mean token of a sequence."""
        sequence = required_flops(
            self.size,
            self.model,
            self.vocabulary,
            sequence_length=self.sequence_length,
            k=k,
            neighbor_length=self.neighbor_length,
            base=self.base,
        )
        return sequence.times(1 / self.sequence_length)

    @property
    def models(self) -> dict[str, int]:
        """The models to compare, one column each: name and number of neighbors."""
        return {f"RETRO k={self.k}": self.k, "baseline": 0} if self.k else {"baseline": 0}


def _parameters(plan: Plan) -> Group:
    table = section(
        f"Parameters of {plan.size.name}",
        f"vocabulary {plan.vocabulary:,} ({plan.vocabulary_source})",
        {LABELS.get(part, part): [f"{count:,}"] for part, count in plan.parameters.parts.items() if count},
        ["parameters"],
    )
    if not plan.retrofit:
        return table
    new = plan.parameters.retrieval
    base = plan.parameters.total - new
    new_scaled, base_scaled = (scaled(count, ("", "k", "M", "B", "T")).replace(" ", "") for count in (new, base))
    said = f"new parameters: {new_scaled}, {new / base:.1%} of {base_scaled}"
    return Group(*table.renderables[:-1], Text(f"  {said}"), Text())


def _flops(plan: Plan) -> Group:
    """Show the forward and training FLOPs of each model's mean token, by part."""
    counts = [plan.flops_per_token(k) for k in plan.models.values()]
    by_part = [flops.parts() | {"total": flops.total} for flops in counts]
    rows = {
        LABELS.get(part, part): _forward_and_training([parts[part] for parts in by_part])
        for part in by_part[0]
        if any(parts[part] for parts in by_part)
    }
    if plan.k:
        retro, baseline = (flops.total for flops in counts)
        rows["overhead of retrieval"] = [f"+{retro / baseline - 1:.1%}"]
    return section(
        "FLOPs per token",
        f"matrix products of sequences of {plan.sequence_length:,} tokens, causal attention counted once; "
        f"training = {TRAINING_TO_FORWARD} x forward",
        rows,
        [f"{name}\n{kind}" for name in plan.models for kind in ("forward", "training")],
    )


def _forward_and_training(forward: Sequence[float]) -> list[str]:
    return [scaled(factor * flops, SI_PREFIXES) for flops in forward for factor in (1, TRAINING_TO_FORWARD)]


def _training(plan: Plan, config: RunConfig, task: PlanConfig) -> Group:
    batch_size = config.data.batch_size
    steps = plan.tokens / (plan.sequence_length * batch_size)
    flops = [TRAINING_TO_FORWARD * plan.flops_per_token(k).total * plan.tokens for k in plan.models.values()]
    return section(
        f"Training on {plan.tokens:,.0f} tokens",
        f"{steps:,.0f} steps of {batch_size} x {plan.sequence_length:,} tokens; GPU hours at {task.utilization:.0%} of "
        f"{task.peak_tflops:,.0f} TFLOP/s",
        {
            "FLOPs": [f"{count:.3g}" for count in flops],
            "GPU hours": [f"{device_hours(count, task.peak_tflops, task.utilization):,.1f}" for count in flops],
        },
        list(plan.models),
    )


def _memory(plan: Plan, config: RunConfig, task: PlanConfig) -> Group:
    """Show the memory of each GPU under DDP, which copies the training state, and FSDP, which divides it."""
    gpus, guess = _gpus(config.trainer)
    sequences = _sequences(config, gpus, guessed=bool(guess))
    name = checked_precision(config.trainer.get("precision"), accelerator="gpu")
    precision = PRECISIONS[name]
    frozen = config.init.freezes and plan.k > 0
    ddp, fsdp = (
        state(plan.parameters, precision, frozen=frozen, devices=gpus) for state in (replicated_state, sharded_state)
    )
    rows = {
        "weights": (ddp.weights, fsdp.weights),
        "gradients": (ddp.gradients, fsdp.gradients),
        f"{ADAMW_MOMENTS} moments of AdamW": (ddp.moments, fsdp.moments),
        "copies in use": (ddp.copies, fsdp.copies),
    }

    def activations_of(sequences: int, checkpointing: bool) -> int:
        return activation_bytes(
            plan.size,
            plan.model,
            plan.vocabulary,
            precision,
            sequences=sequences,
            sequence_length=plan.sequence_length,
            k=plan.k,
            neighbor_length=plan.neighbor_length,
            checkpointing=checkpointing,
        )

    activations = {kind: activations_of(sequences, bool(kind)) for kind in ("", ", checkpointed")}
    rows |= {f"activations{kind}": (count, count) for kind, count in activations.items()}
    rows |= {f"total{kind}": (ddp.total + count, fsdp.total + count) for kind, count in activations.items()}
    nodes = int(config.trainer.get("num_nodes", 1))
    given = Gpus(None if guess else gpus // nodes, nodes, gpus, task.gpu_memory)
    states = {"gpu" if gpus == 1 else "ddp": ddp}
    if name in SHARDED_PRECISIONS:
        states["fsdp"] = fsdp
    fit = fitting(given, name, states, activations_of, config.data.batch_size)
    table = section(
        f"Memory per GPU, with {gpus} GPU{'s' * (gpus > 1)}{guess}",
        f"precision {name}; {sequences} sequence{'s' * (sequences > 1)} on a GPU at a time, fewer with "
        "data.micro_batch_size; activations as estimated in retro_lab.cost.memory",
        {part: [scaled(count, BYTES) for count in row] for part, row in rows.items()},
        ["DDP", "FSDP"],
    )
    return Group(*table.renderables[:-1], Text(f"  {fit}"), Text())


def _gpus(trainer: Mapping[str, Any]) -> tuple[int, str]:
    """Return the number of GPUs of all nodes, and a note if it is a guess."""
    count = device_count(trainer)
    if count is None:
        guess = f" (trainer.devices={trainer.get('devices', 'auto')}, taken as {GUESSED_DEVICES})"
        return GUESSED_DEVICES * int(trainer.get("num_nodes", 1)), guess
    return count, ""


def _sequences(config: RunConfig, gpus: int, *, guessed: bool) -> int:
    """Return how many sequences a GPU holds at a time, rounded up if the number of GPUs is a guess."""
    if guessed:
        return min(-(-config.data.batch_size // gpus), config.data.micro_batch_size or config.data.batch_size)
    return check_batch(config, gpus)
