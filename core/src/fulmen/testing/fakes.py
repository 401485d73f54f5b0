"""Parts that do little and tell what happened to them, to test other parts with."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fulmen import Accelerator, Callback, Logger
from fulmen.contracts.logger import named_values
from fulmen.testing.training import Validated


class RecordingLogger(Logger):
    """Keeps everything in memory: ``rows``, ``hyperparams``, ``config`` and the ``statuses`` that it was finalized with."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.hyperparams: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.statuses: list[str] = []

    @property
    def name(self) -> str:
        """``"recording"``."""
        return "recording"

    @property
    def version(self) -> None:
        """There is none."""
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep the row, with its ``step``."""
        self.rows.append({"step": self.step_of_row(step), **metrics})

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:
        """Keep them."""
        self.hyperparams.update(named_values(params))

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Keep it."""
        self.config = dict(config)

    def finalize(self, status: str) -> None:
        """Keep the status."""
        self.statuses.append(status)


class FailingLogger(RecordingLogger):
    """Raises ``OSError`` from its row number ``after`` on, as on a disk that is full."""

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self.after = after

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep the row, or fail."""
        if len(self.rows) >= self.after:
            raise OSError(28, "No space left on device")
        super().log_metrics(metrics, step)


class RecordingCallback(Callback):
    """Keeps the names of the hooks that fire, in order, in ``calls``; with ``runs_last`` after everyone else's.

    >>> RecordingCallback(runs_last=True).calls
    []
    """

    def __init__(self, runs_last: bool = False) -> None:
        self.runs_last = runs_last
        self.calls: list[str] = []
        names = ["setup", "teardown", *(name for name in dir(Callback) if name.startswith("on_"))]
        for name in names:
            setattr(self, name, self._recorder(name))

    def _recorder(self, name: str) -> Any:
        def record(*arguments: Any) -> None:
            self.calls.append(name)

        return record


class FakeAccelerator(Accelerator):
    """Pretends that the processor is several devices, and keeps what was asked of it in ``calls``.

    Args:
        count: How many devices to pretend.
    """

    name = "fake"
    count = 2

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.calls: list[str] = []

    @staticmethod
    def is_available() -> bool:
        """Always."""
        return True

    @staticmethod
    def num_available() -> int:
        """What the class says; :meth:`parse_devices` goes by the instance."""
        return FakeAccelerator.count

    def parse_devices(self, devices: Any) -> list[int]:
        """As the contract says, for ``count`` devices."""
        self.num_available = lambda: self.count  # type: ignore[method-assign]
        return super().parse_devices(devices)

    def devices(self, indices: Iterable[int]) -> list[torch.device]:
        """The processor, once for each index."""
        return [torch.device("cpu") for _ in indices]

    def setup_device(self, device: torch.device) -> None:
        """Keep that it was called."""
        self.calls.append("setup_device")

    def teardown(self) -> None:
        """Keep that it was called."""
        self.calls.append("teardown")


class Failure(RuntimeError):  # noqa: N818 - the noun of what tests ask for
    """What failing parts raise, so that nothing else is mistaken for it."""


class FailingModule(Validated):
    """Trains until a batch at which it raises :class:`Failure`.

    Args:
        at: The batch of the whole training, from 0.
        rank: Fail on this rank only; ``None``: on every rank.
    """

    def __init__(self, at: int = 3, rank: int | None = None) -> None:
        super().__init__()
        self.at, self.rank = at, rank

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss, or the failure."""
        if self.trainer.progress.batches == self.at and self.rank in (None, self.trainer.global_rank):
            raise Failure(f"batch {self.at} fails, as asked")
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss


class FailingCallback(Callback):
    """Raises :class:`Failure` in one hook.

    Args:
        hook: Its name, such as ``"on_train_batch_end"``.
    """

    def __init__(self, hook: str) -> None:
        def fail(*arguments: Any) -> None:
            raise Failure(f"{hook} fails, as asked")

        setattr(self, hook, fail)
