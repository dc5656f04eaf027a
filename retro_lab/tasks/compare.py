"""`task=compare`: RETRO against its baseline twin, trained on the same tokens; the lab's main experiment."""

from retro_lab.errors import ConfigurationError
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks import train
from retro_lab.tasks.assemble import without_retrieval
from retro_lab.tasks.checks import check_start, check_training
from retro_lab.tasks.config import RunConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Build what is missing, train and evaluate both models, and report.

    The baseline comes first, so that `init=retrofit` can start from it.

    Raises:
        ConfigurationError: `retrieval.k` is 0, which leaves nothing to compare, or a check fails.
    """
    if not config.retrieval.k:
        raise ConfigurationError("retrieval.k=0 is the baseline itself; use task=train, or a k of at least 1.")
    check_training(config)
    check_start(config, folder, trains_baseline=True)
    train.train_models([without_retrieval(config), config], folder)
