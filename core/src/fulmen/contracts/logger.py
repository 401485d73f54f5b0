"""Where metrics and hyper-parameters of a run go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from fulmen.errors import warn

if TYPE_CHECKING:
    from fulmen.contracts.callback import Callback
    from fulmen.contracts.module import Module

Status = Literal["success", "failed", "interrupted"]


class Logger(ABC):
    """One destination. fulmen calls it on rank 0 only, with plain numbers, at logging steps and epoch ends.

    An exception of a logger is a warning (code ``logger-failed``) and the training goes on, unless :attr:`required`.
    """

    required: bool = False
    """Whether a failure of this logger is to stop the training."""

    @property
    @abstractmethod
    def name(self) -> str | None:
        """The experiment's name."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """The version or id of the run."""

    @property
    def save_dir(self) -> str | None:
        """The folder that holds all experiments; ``None`` where nothing is kept on this machine."""
        return None

    @property
    def log_dir(self) -> str | None:
        """The folder of this run; ``None`` where nothing is kept on this machine."""
        return None

    @property
    def experiment(self) -> Any:
        """The object of the logging library, for what this contract does not cover."""
        return None

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep one row.

        Args:
            metrics: Names and values; ``epoch`` is among them.
            step: Position on the step axis: batches that stepped so far, minus one.
        """

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Keep the hyper-parameters. Called once per run, before the first metrics."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Keep the trainer's options and the plugins in effect, as JSON-able data. Called once per run."""

    def log_graph(self, module: Module) -> None:
        """Keep the graph of ``module``, where the destination can show one. Called once per run, before the first metrics."""

    def after_save_checkpoint(self, callback: Callback, path: str) -> None:
        """A callback saved a checkpoint to ``path``: the place to upload it."""

    def save(self) -> None:
        """Make everything logged so far durable."""

    def finalize(self, status: Status) -> None:
        """The run ended. May be called again by a later run."""

    def state_dict(self) -> dict[str, Any]:
        """What is needed to continue this run's record after a resume, as plain data."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a record. Called before anything else of the run."""


def call_loggers(loggers: Iterable[Logger], action: Callable[[Logger], None]) -> None:
    """Do ``action`` for each logger; one that fails is reported, and stops the run only where it is required."""
    for logger in loggers:
        try:
            action(logger)
        except Exception as error:  # a full disk or a server that is gone is no reason to lose a training
            if logger.required:
                raise
            warn(
                "logger-failed",
                f"{type(logger).__name__}: {type(error).__name__}: {error}. The training goes on; "
                "set logger.required = True to stop on such a failure",
            )
