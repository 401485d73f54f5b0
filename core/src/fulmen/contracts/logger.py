"""Where metrics and hyper-parameters of a run go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from inspect import isfunction
from typing import TYPE_CHECKING, Any, Literal

from fulmen.contracts.ranks import Nothing, is_rank_zero, rank_zero_only
from fulmen.errors import warn

if TYPE_CHECKING:
    from fulmen.contracts.callback import Callback
    from fulmen.contracts.module import Module

Status = Literal["success", "failed", "interrupted"]


WRITING = ("after_save_checkpoint", "save", "finalize")


class Logger(ABC):
    """One destination. fulmen calls it on rank 0 only, with plain numbers, at logging steps and epoch ends.

    People call it too, on every rank. So what a subclass defines to write is made to do nothing on other ranks: methods
    whose names begin with ``log_``, :meth:`after_save_checkpoint`, :meth:`save` and :meth:`finalize`. :attr:`experiment` is
    there an object of which every attribute and method does nothing. Other methods that write need
    :func:`fulmen.loggers.rank_zero_only`.

    An exception of a logger is a warning (code ``logger-failed``) and the training goes on, unless :attr:`required`.
    """

    required: bool = False
    """Whether a failure of this logger is to stop the training."""

    latest_step: int = 0
    """The step of the latest row: what is logged without one goes there. See :meth:`step_of_row`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let what writes do so on rank 0 only."""
        super().__init_subclass__(**kwargs)
        for name, found in list(vars(cls).items()):
            if isfunction(found) and (name.startswith("log_") or name in WRITING):
                setattr(cls, name, rank_zero_only(found))
            elif name == "experiment" and isinstance(found, property) and found.fget is not None:
                setattr(cls, name, found.getter(nothing_elsewhere(found.fget)))

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
        """The object of the logging library, for what this contract does not cover; ``None`` where there is none."""
        return None if is_rank_zero() else Nothing()

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep one row.

        Args:
            metrics: Names and values; ``epoch`` is among them.
            step: Position on the step axis: batches that stepped so far, minus one. ``None``, which people give and fulmen
                never: that of the latest row, 0 before the first; :meth:`step_of_row` gives it.
        """

    def step_of_row(self, step: int | None) -> int:
        """``step``, or :attr:`latest_step` where it is ``None``; remembers it. For :meth:`log_metrics`."""
        if step is not None:
            self.latest_step = int(step)
        return self.latest_step

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:
        """Keep the hyper-parameters. fulmen does so once per run, before the first metrics, with a mapping.

        People also have an ``argparse.Namespace``; :func:`named_values` gives a mapping for both.
        """

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


def nothing_elsewhere(experiment: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``experiment``, with an object that does nothing on ranks other than 0."""

    @wraps(experiment)
    def on_rank_zero(logger: Any) -> Any:
        return experiment(logger) if is_rank_zero() else Nothing()

    return on_rank_zero


def named_values(params: Mapping[str, Any] | Namespace) -> Mapping[str, Any]:
    """Hyper-parameters as a mapping.

    Raises:
        TypeError: They are neither a mapping nor an ``argparse.Namespace``.

    >>> named_values(Namespace(lr=0.1))
    {'lr': 0.1}
    """
    if isinstance(params, Namespace):
        return vars(params)
    if not isinstance(params, Mapping):
        raise TypeError(f"hyper-parameters are a mapping or an argparse.Namespace, and these are {type(params).__name__}")
    return params


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
