"""Distributions of weights and gradients, without waiting for the device."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fulmen import Callback, ConfigurationError, Logger
from fulmen.contracts.logger import call_loggers
from fulmen_tensorboard.logger import TensorBoardLogger

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from fulmen import Module, Trainer

NUM_BINS = 64


class Pending(NamedTuple):
    """Histograms on their way to the host."""

    tags: list[str]
    values: Tensor
    event: torch.Event | None
    step: int


class HistogramMonitor(Callback):
    """Writes histograms of parameters and their gradients to the trainer's :class:`TensorBoardLogger`.

    They are taken before an optimizer step: gradients are complete and unscaled, not clipped yet, and weights are those that
    gave them. Each is counted into 64 bins on its device, and the counts are copied while the training goes on. Values
    that are not finite are left out; a parameter that has no others is skipped. Costs a comparison at other steps.

    Tags are ``weights/NAME`` and ``gradients/NAME``. Rank 0 writes its own; with sharded parameters, nobody else's.

    Args:
        every_n_steps: Every so many steps of the loggers' axis.
        weights: Whether to write parameters.
        gradients: Whether to write gradients.

    Raises:
        ConfigurationError: There is nothing to write, or ``every_n_steps`` is out of range; at the start of a fit, there is
            no :class:`TensorBoardLogger`.
    """

    def __init__(self, every_n_steps: int = 100, weights: bool = True, gradients: bool = True) -> None:
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ConfigurationError(f"every_n_steps={every_n_steps!r} is not allowed; allowed: a whole number from 1")
        if not (weights or gradients):
            raise ConfigurationError("HistogramMonitor has nothing to write: set weights or gradients, or leave it out")
        self.every_n_steps, self.weights, self.gradients = every_n_steps, weights, gradients
        self._loggers: list[Logger] = []
        self._names: dict[int, str] = {}
        self._seen: dict[int, int] = {}
        self._pending: deque[Pending] = deque()

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Find the logger and the names."""
        self._loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not self._loggers and not trainer.fast_dev_run:
            raise ConfigurationError("HistogramMonitor needs a TensorBoardLogger: use logger='tensorboard', or drop it")
        if not trainer.is_global_zero:
            self._loggers = []
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._seen = {}

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Optimizer) -> None:
        """Take histograms where they are due, once per optimizer and step."""
        step = trainer.progress.updates
        if (step + 1) % self.every_n_steps or not self._loggers or self._seen.get(id(optimizer)) == step:
            return
        self._seen[id(optimizer)] = step
        self._write(wait=False)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._take([parameter for parameter in parameters if id(parameter) in self._names], step)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Write what has been taken."""
        self._write(wait=True)

    def state_dict(self) -> dict[str, Any]:
        """Nothing; but what has been taken is written before the logger says where its record ends."""
        self._write(wait=True)  # synchronises when a checkpoint is saved, which reads all weights from the device anyway
        return {}

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Write what has been taken before the failure."""
        self._write(wait=False)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Let go of the parameters."""
        self._names, self._loggers = {}, []
        self._pending.clear()

    @torch.no_grad()
    def _take(self, parameters: list[Tensor], step: int) -> None:
        found: dict[str, Tensor] = {}
        for parameter in parameters:
            name = self._names[id(parameter)]
            if not parameter.numel():
                continue
            if self.weights:
                found[f"weights/{name}"] = local(parameter)
            if self.gradients and parameter.grad is not None:
                found[f"gradients/{name}"] = local(parameter.grad)
        counted = [histogram(value) for value in found.values()]
        if counted:
            values, event = queued(torch.stack(counted))
            self._pending.append(Pending(list(found), values, event, step))
            self._write(wait=False)

    def _write(self, wait: bool) -> None:
        while self._pending and (wait or self._pending[0].event is None or self._pending[0].event.query()):
            pending = self._pending.popleft()
            if pending.event is not None:
                pending.event.synchronize()  # returns at once, or waits at the end of an epoch
            for tag, row in zip(pending.tags, pending.values.tolist(), strict=True):
                call_loggers(self._loggers, partial(write, tag=tag, row=row, step=pending.step))


def histogram(values: Tensor) -> Tensor:
    """Smallest and largest value, number, sum and sum of squares of the finite values, and counts in 64 equal bins: [69].

    Everything happens on the device of ``values``, in single precision.
    """
    values = values.reshape(-1).float()
    finite = values.isfinite()
    low = torch.where(finite, values, torch.inf).amin()
    high = torch.where(finite, values, -torch.inf).amax()
    width = ((high - low) / NUM_BINS).clamp_min(torch.finfo(torch.float32).tiny)
    bins = torch.where(finite, ((values - low) / width), 0).long().clamp_(0, NUM_BINS - 1)
    counts = torch.zeros(NUM_BINS, dtype=torch.int32, device=values.device).index_add_(0, bins, finite.int())
    kept = torch.where(finite, values, 0)
    return torch.cat([torch.stack([low, high, finite.sum(), kept.sum(), kept.square().sum()]), counts.float()])


def local(values: Tensor) -> Tensor:
    """``values``, or the part of a sharded tensor that is on this device."""
    found: Tensor = values.to_local() if hasattr(values, "to_local") else values
    return found.detach()


def queued(values: Tensor) -> tuple[Tensor, torch.Event | None]:
    """The copy of ``values`` on the host and the event that tells when it is complete; ``None``: it is."""
    if values.device.type == "cpu":
        return values, None
    copy = values.to("cpu", non_blocking=True)
    try:
        event = torch.Event(values.device)
        event.record()
    except (NotImplementedError, RuntimeError):  # a device without events: waits for it
        return values.cpu(), None
    return copy, event


def write(logger: Logger, tag: str, row: list[float], step: int) -> None:
    """Write one histogram; nothing where no value was finite."""
    low, high, count, total, squares, *counts = row
    if not count:
        return
    width = (high - low) / NUM_BINS
    limits = [low + width * (index + 1) for index in range(NUM_BINS - 1)] + [high]
    assert isinstance(logger, TensorBoardLogger)
    logger.experiment.add_histogram_raw(tag, low, high, count, total, squares, limits, counts, step)
