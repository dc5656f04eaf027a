"""Settings of Lightning's Trainer that would contradict retro_lab's own, each with the setting to use instead."""

from collections.abc import Mapping
from typing import Any

from retro_lab.errors import ConfigurationError

TOKENS = "schedule.tokens sets how long to train"
CURVE = "evaluation.curve_points and evaluation.curve_tokens set when to score during training, and on how much text"
INSTEAD = {
    "accumulate_grad_batches": "data.micro_batch_size sets how many sequences a device holds at a time",
    "fast_dev_run": "debug=fast tries everything in a few steps",
    "max_steps": TOKENS,
    "max_epochs": TOKENS,
    "min_steps": TOKENS,
    "min_epochs": TOKENS,
    "limit_train_batches": TOKENS,
    "overfit_batches": "data.overfit_batches trains on the first few batches again and again",
    "limit_val_batches": CURVE,
    "val_check_interval": CURVE,
    "check_val_every_n_epoch": CURVE,
    "num_sanity_val_steps": CURVE,
    "gradient_clip_val": "schedule.gradient_clip sets the largest norm",
    "callbacks": "+callbacks.NAME._target_=... adds one",
    "logger": "logger=... chooses them",
    "default_root_dir": "name and paths.outputs set where a run writes",
    "use_distributed_sampler": "batches are divided over ranks as they are read",
    "enable_checkpointing": "callbacks.checkpoint.every_n_train_steps sets how often",
    "barebones": "callbacks and loggers have configuration groups of their own",
}


def check_trainer_settings(trainer: Mapping[str, Any]) -> None:
    """Refuse settings that would be ignored, or would end training without a trace in the record.

    Raises:
        ConfigurationError: One of `INSTEAD` is set, or the strategy is a form of FSDP that the model is not made for.
    """
    if str(trainer.get("strategy")).startswith("fsdp"):  # Lightning's, for the first version of FSDP
        raise ConfigurationError(
            f"trainer.strategy={trainer['strategy']} is not supported: trainer=fsdp shards the model."
        )
    for key, instead in INSTEAD.items():
        value = trainer.get(key)
        if value is not None and value is not False:
            raise ConfigurationError(f"trainer.{key}={value} cannot be set on the trainer: {instead}.")
