"""A logger for Trackio, a tracker whose dashboard runs on one's own machine (`trackio show`), without an account."""

import io
from argparse import Namespace
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from retro_lab.errors import ConfigurationError


class TrackioLogger(Logger):
    """Logs to a Trackio run, which a resumed training continues by its name."""

    def __init__(self, project: str, name: str, group: str | None = None) -> None:
        """Start nothing yet.

        Args:
            project: Of Trackio, shared by runs that are looked at together.
            name: Of the run, unique in the project.
            group: Runs that belong together, such as those of a sweep.

        Raises:
            ConfigurationError: The extra `trackio` is not installed.
        """
        super().__init__()
        try:
            import trackio  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "logger=trackio needs the extra `trackio`: pip install 'retro_lab[trackio]'."
            ) from error
        self._project, self._name, self._group = project, name, group
        self._settings: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The run."""
        return self._name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The Trackio run, started at the first use."""
        import trackio

        if self._run is None:
            with redirect_stdout(io.StringIO()):
                self._run = trackio.init(
                    project=self._project,
                    name=self._name,
                    group=self._group,
                    config=self._settings,
                    resume="allow",
                    embed=False,
                    auto_log_gpu=False,
                )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Keep the configuration, which Trackio takes as a run starts."""
        self._settings = vars(params) if isinstance(params, Namespace) else dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers at a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Do nothing: Lightning calls this after training, and the final scores are still to come."""

    @rank_zero_only
    def finish(self) -> None:
        """End the run and wait until it is on disk."""
        if self._run is not None:
            import trackio

            with redirect_stdout(io.StringIO()):
                trackio.finish()
            self._run = None
