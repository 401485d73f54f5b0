"""Measure where a run spends its time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any


class Profiler(ABC):
    """Actions have names such as ``training_step`` or ``Callback.on_train_batch_end``.

    Without a profiler a run has no trace of one: functions are wrapped once, at the start, where there is one.
    """

    @abstractmethod
    def start(self, action: str) -> None:
        """``action`` begins."""

    @abstractmethod
    def stop(self, action: str) -> None:
        """``action`` ends."""

    @abstractmethod
    def summary(self) -> str:
        """A table of what was measured."""

    @contextmanager
    def profile(self, action: str) -> Iterator[None]:
        """Measure a block.

        >>> with profiler.profile("augment"):  # doctest: +SKIP
        ...     batch = augment(batch)
        """
        self.start(action)
        try:
            yield
        finally:
            self.stop(action)

    def wrap(self, action: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, measured as ``action``."""

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            self.start(action)
            try:
                return function(*args, **kwargs)
            finally:
                self.stop(action)

        return measured

    def iterate(self, action: str, values: Iterator[Any]) -> Iterator[Any]:
        """``values``, with the time that each takes to arrive measured as ``action``."""
        end = object()
        while True:
            with self.profile(action):
                value = next(values, end)
            if value is end:
                return
            yield value

    def teardown(self) -> None:
        """A run ended: report, and close what is open."""
