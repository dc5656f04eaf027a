"""`task=compare`: RETRO against its baseline twin, trained on the same tokens; the laboratory's main experiment."""

from omegaconf import DictConfig

from retro_lab.errors import ConfigurationError
from retro_lab.launch.run_folder import held, run_folder
from retro_lab.tasks import report
from retro_lab.tasks.build import build_corpus, build_database
from retro_lab.tasks.checks import check_start, check_training
from retro_lab.tasks.train import begin, train_model


def run(config: DictConfig) -> None:
    """Build what is missing, train and evaluate both models, and report.

    The baseline comes first, so that `init=retrofit` can start from it.

    Raises:
        ConfigurationError: `retrieval.k` is 0, which leaves nothing to compare, or the checks refuse
            something.
    """
    if not config.retrieval.k:
        raise ConfigurationError("retrieval.k=0 is the baseline itself; use task=train, or a k of at least 1.")
    check_training(config, config.retrieval.k)
    run = run_folder()
    check_start(config, run, trains_baseline=True)
    with held(run):
        corpus = build_corpus(config)
        database = build_database(config, corpus)
        begin(config, [0, config.retrieval.k], run, corpus, database)
        train_model(config, 0, run, corpus, None)
        train_model(config, config.retrieval.k, run, corpus, database)
        report.run(config)
