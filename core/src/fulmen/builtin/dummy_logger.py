"""A logger that keeps nothing, for trainings that only try whether everything works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fulmen.contracts.logger import Logger
from fulmen.contracts.ranks import Nothing


class DummyLogger(Logger):
    """Takes everything and keeps nothing. With ``fast_dev_run``, one stands for each logger that was given.

    What a library's logger has beside the contract (``experiment``, ``watch``, ``log_image``, ``run_id``) is an object that
    does nothing, whatever is called, asked, set, indexed or entered on it, so that code which uses it is tried too.

    >>> logger = DummyLogger()
    >>> logger.experiment.add_scalar("loss", 0.5, 3)
    <Nothing>
    >>> logger.log_image(key="samples", images=[])
    <Nothing>
    """

    name = ""
    version = ""

    @property
    def experiment(self) -> Any:
        """Does nothing."""
        return Nothing()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying and pickling look for
            raise AttributeError(name)
        return Nothing()

    def __getitem__(self, index: Any) -> DummyLogger:
        return self
