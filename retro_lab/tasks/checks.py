"""Checks before anything is built: do the values fit together, and do they fit this machine?

A corpus and a database can take hours to build, so every task that builds them runs these checks first. Single values
are checked where their group is defined, as soon as a configuration is composed.
"""

from collections.abc import Collection, Mapping
from typing import Any

from retro_lab import ranks
from retro_lab.errors import ConfigurationError
from retro_lab.runs.folder import BASELINE, RunFolder
from retro_lab.runs.trained_model import has_model
from retro_lab.tasks.assemble import base_model, model_size, start_weights
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.memory import check_memory
from retro_lab.training.batches import accumulated_batches
from retro_lab.training.checkpoints import sealed_file
from retro_lab.training.compiled import check_compiler
from retro_lab.training.devices import device_count, devices_used, is_sharding
from retro_lab.training.limits import check_trainer_settings
from retro_lab.training.precision import SHARDED_PRECISIONS, checked_precision


def check_training(config: RunConfig) -> None:
    """Check everything that a run's model is trained and scored with.

    Raises:
        ConfigurationError: Values do not fit together, no model can have these settings, the machine's memory cannot
            hold a step, or the model is to be compiled and there is no compiler.
    """
    size, k = model_size(config), config.retrieval.k
    if k and not size.cca_layers:
        raise ConfigurationError(
            f"retrieval.k={k} neighbors are not used by any layer, because size.cca_layers is empty; name layers, or "
            "set retrieval.k=0 for the baseline."
        )
    check_base(config)
    check_trainer(config.trainer)
    devices = devices_used(config.trainer)
    check_memory(config, size, config.model, check_batch(config, devices), devices)
    if config.compute.compile:
        check_compiler()


def check_base(config: RunConfig) -> None:
    """Check that the pretrained decoder of a run reads sequences as long as the data's.

    Raises:
        ConfigurationError: It has no such model, or the model has fewer positions.
    """
    base, length = base_model(config), config.data.sequence_length
    if base is not None and base.longest is not None and length > base.longest:
        raise ConfigurationError(
            f"data.sequence_length={length} is more than the {base.longest:,} positions of {base.name}; set it to at "
            "most as many."
        )


def check_evaluation(config: RunConfig) -> None:
    """Check everything that a trained model is scored with.

    Raises:
        ConfigurationError: Values do not fit together.
    """
    check_trainer(config.trainer)


def check_knn_lm(config: RunConfig, models: Collection[str]) -> None:
    """Check that there is a baseline for a kNN-LM to be over.

    Args:
        config: Of the command.
        models: Those that the command scores.

    Raises:
        ConfigurationError: A kNN-LM is wanted, and no baseline is among the models.
    """
    k = config.evaluation.knn_lm.k
    if k and BASELINE not in models:
        raise ConfigurationError(
            f"evaluation.knn_lm.k={k} is over a run's baseline, which this command does not score; set it to 0, or "
            "train a baseline in the same run with task=compare or retrieval.k=0."
        )


def check_trainer(trainer: Mapping[str, Any], accelerator: str | None = None) -> None:
    """Check what Lightning would refuse, or silently change, only after everything is built.

    Args:
        trainer: The group.
        accelerator: The accelerator to train on; None for the trainer's own on this machine.

    Raises:
        ConfigurationError: The devices or the precision of `trainer` are impossible.
    """
    check_trainer_settings(trainer)
    name = checked_precision(trainer.get("precision"), accelerator or str(trainer.get("accelerator", "auto")))
    if is_sharding(trainer) and name not in SHARDED_PRECISIONS:
        raise ConfigurationError(
            f"trainer.precision={trainer.get('precision')} does not work with trainer=fsdp; use one of "
            f"{', '.join(SHARDED_PRECISIONS)}."
        )
    _check_processes(device_count(trainer))


def _check_processes(devices: int | None) -> None:
    """Refuse processes of a launcher that Lightning would leave to train a model each, on one device.

    Raises:
        ConfigurationError: `torchrun` or `srun` started another number of processes than there are devices.
    """
    started = ranks.current().world
    if devices is not None and started not in (1, devices):
        raise ConfigurationError(
            f"{started} processes were started for {devices} device{'s' if devices > 1 else ''}: let trainer.devices "
            f"(on each machine) times trainer.num_nodes be {started}, as with trainer=ddp trainer.devices={started}."
        )


def check_batch(config: RunConfig, devices: int) -> int:
    """Return how many sequences of a global batch one of `devices` devices holds at a time.

    Raises:
        ConfigurationError: The batch cannot be divided.
    """
    data = config.data
    return data.batch_size // devices // accumulated_batches(data.batch_size, data.micro_batch_size, devices)


def check_start(config: RunConfig, folder: RunFolder, trains_baseline: bool = False) -> None:
    """Check that the baseline that RETROfit starts from exists.

    Args:
        config: Of the command.
        folder: Of the run.
        trains_baseline: Whether the command trains the run's own baseline, which need not exist yet.

    Raises:
        ConfigurationError: There is no such baseline.
    """
    start = start_weights(config, folder) if config.retrieval.k else None
    if start is None or sealed_file(start) or has_model(start):
        return
    if trains_baseline and start.absolute() == folder.model(BASELINE).absolute():
        return
    advice = "or leave it out to start from this run's own" if trains_baseline else "or train both with task=compare"
    raise ConfigurationError(
        f"init=retrofit starts from a trained baseline, and there is none at {start}; set init.checkpoint to the "
        f"folder of a trained baseline or to a checkpoint of its training, {advice}."
    )
