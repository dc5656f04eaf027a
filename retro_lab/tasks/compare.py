"""`task=compare`: RETRO against baselines of the same tokens and of the same training FLOPs; the main experiment.

Neighbors cost compute: RETRO takes more FLOPs for a token than its baseline twin. A reader who pays for FLOPs rather
than for tokens compares it with a baseline that was trained for longer.
"""

from dataclasses import replace

from retro_lab.errors import ConfigurationError
from retro_lab.runs.folder import BASELINE, LONGER_BASELINE, RETRO, RunFolder
from retro_lab.tasks import train
from retro_lab.tasks.assemble import model_settings, without_retrieval
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.checks import check_start, check_training
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.evaluate import mean_token_flops
from retro_lab.tasks.task_config import CompareConfig
from retro_lab.training.config import Init


def run(config: RunConfig, folder: RunFolder) -> None:
    """Build what is missing, train and evaluate the models, and report.

    The baseline comes first, so that `init=retrofit` can start from it.

    Raises:
        ConfigurationError: `retrieval.k` is 0, which leaves nothing to compare, or a check fails.
    """
    if not config.retrieval.k:
        raise ConfigurationError("retrieval.k=0 is the baseline itself; use task=train, or a k of at least 1.")
    check_training(config)
    check_start(config, folder, trains_baseline=True)
    with folder.held(), Inputs(config) as inputs:
        train.train_models(compared(config, inputs), folder, inputs)


def compared(config: RunConfig, inputs: Inputs) -> dict[str, RunConfig]:
    """Return the configuration of each model to compare, by name, in the order of their training.

    A RETROfit has no longer baseline: it starts from a trained one, so its FLOPs alone are not those of its training.
    """
    baseline = without_retrieval(config)
    models = {BASELINE: baseline}
    assert isinstance(config.task, CompareConfig)
    if config.task.longer_baseline and config.init.name is Init.scratch:
        tokens = config.schedule.tokens * training_flops_ratio(config, inputs)
        models[LONGER_BASELINE] = replace(baseline, schedule=replace(baseline.schedule, tokens=tokens))
    return models | {RETRO: config}


def training_flops_ratio(config: RunConfig, inputs: Inputs) -> float:
    """Return how many times the FLOPs of its baseline a RETRO takes for a token in training."""
    tokenizer = inputs.corpus.stores["train"].tokenizer
    retro, baseline = (
        mean_token_flops(model_settings(model, tokenizer), model.retrieval.k, config.data.sequence_length)
        for model in (config, without_retrieval(config))
    )
    return retro / baseline
