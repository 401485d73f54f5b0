"""What a run is, and the few integers that say where it is.

Plugins and callbacks read a :class:`Run` through the trainer and ask it (:meth:`Run.request_stop`); only ``loop.py`` and
``step.py`` move it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import torch

from fulmen.background import BackgroundWriter
from fulmen.clock import Clock
from fulmen.contracts.callback import Callback
from fulmen.contracts.datamodule import DataModule
from fulmen.contracts.logger import Logger, call_loggers
from fulmen.contracts.module import Module
from fulmen.errors import ModuleError, listing
from fulmen.hooks import Hooks
from fulmen.metrics import Metrics
from fulmen.progress import EPOCH_ENDED, Progress
from fulmen.schedule import ValidationSchedule

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from fulmen.contracts.data_hooks import Stage
    from fulmen.contracts.profiler import Profiler
    from fulmen.data import Loaders
    from fulmen.optimizers import OptimizerHandle, SchedulerConfig
    from fulmen.options import Options
    from fulmen.runtime import Runtime
    from fulmen.trainer import Trainer

Phase = Literal["train", "sanity_check", "validate", "test", "predict"]
"""What a run is doing at the moment."""


@dataclass(slots=True, eq=False)
class Run:
    """Everything that one call of ``fit``, ``validate``, ``test`` or ``predict`` works with."""

    trainer: Trainer
    stage: Stage
    options: Options
    runtime: Runtime
    module: Module
    datamodule: DataModule | None
    callbacks: list[Callback]
    loggers: list[Logger]
    profiler: Profiler | None
    progress: Progress
    metrics: Metrics
    hooks: Hooks = field(default_factory=Hooks)
    late: Hooks = field(default_factory=Hooks)
    clock: Clock = field(default_factory=Clock)
    writer: BackgroundWriter = field(init=False)

    optimizers: list[Optimizer] = field(default_factory=list)
    optimizer_handles: list[OptimizerHandle] = field(default_factory=list)
    schedulers: list[SchedulerConfig] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)
    """Phase -> loaders that the caller passed."""
    loaders: dict[str, Loaders] = field(default_factory=dict)
    """Phase -> the loaders in use."""
    step: Any = None
    """The step function of the training."""
    validates: bool = False
    """Whether the training is validated."""
    validation: ValidationSchedule = field(default_factory=ValidationSchedule)
    """When."""

    accumulate: int = 1
    """Batches per optimizer step in this epoch."""
    batch_idx: int = 0
    """The index of the training batch that is worked on."""
    stepped: bool = False
    """Whether the latest batch ended with an optimizer step."""
    validation_requested: bool = False
    """Whether a validation is due by time."""

    phase: Phase | None = None
    status: Literal["initializing", "running", "finished", "interrupted", "failed"] = "initializing"
    stop_reason: str | None = None
    """Why the run was asked to stop; ``None`` while nobody asked."""
    stop_requested: bool = False
    """Whether somebody asked for the stop, rather than that the maximum of epochs or steps was reached."""
    stop_now: bool = False
    """Whether it is to stop at the next step, without validation and whatever the minimum of epochs and steps."""
    asked: int = 0
    """In a distributed run, a stop that was requested on this rank and that the others do not know of yet: 1, or 3 for now."""
    carried: dict[str, Any] | None = None
    """The training state at the end of a run that took place in another process."""
    began: dict[str, Any] | None = None
    """Where the run stood when the present validation began, or when it was stopped: what a checkpoint goes back to."""
    resumed: dict[str, Any] | None = None
    """The checkpoint that this run resumes from, until its last part is applied."""
    resumed_from: str = ""
    """Its path."""
    inexact: list[str] = field(default_factory=list)
    """What makes a resume of this run inexact."""
    run_id: str = ""
    """The same before and after a resume."""
    log_dir: str | None = None
    """That of rank 0, in a distributed run."""
    results: Any = None
    toggled: dict[torch.nn.Parameter, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.writer = BackgroundWriter(self.clock, self.runtime)

    @property
    def active(self) -> bool:
        """Whether the run is going on."""
        return self.status == "running"

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.runtime.device

    def agree(self) -> None:
        """Share requests to stop, and alarms, between the ranks, so that all of them act after the same step.

        The same call on every rank. Between two calls, a request waits: a rank that stopped by itself would leave the
        others behind. By time, rank 0 decides: the clocks of ranks differ.
        """
        if self.runtime.world_size == 1:
            return
        due = self.clock.due(monotonic()) if self.runtime.global_rank == 0 else 0
        flags = self.runtime.strategy.agree(self.asked + 4 * due)
        if flags & 3:
            self.stop_reason = self.stop_reason or "another rank asked to stop"
            self.stop_requested, self.stop_now = True, self.stop_now or bool(flags & 2)
        if flags >> 2:
            self.clock.ring_alarms(flags >> 2)

    def request_stop(self, reason: str, now: bool = False) -> None:
        """Ask the loop to end after the current step. The first reason stays.

        Args:
            reason: For people: ``trainer.stop_reason``.
            now: Also without validation, and before ``min_epochs`` and ``min_steps``.
        """
        self.stop_reason = self.stop_reason or reason
        if self.active and self.runtime.world_size > 1:
            self.asked |= 3 if now else 1  # until all ranks know
            return
        self.stop_requested = True
        self.stop_now = self.stop_now or now

    def must_stop(self) -> bool:
        """Whether the training is over: a maximum is reached, or a stop was requested and the minimum is met."""
        if self.progress.epoch >= self.options.num_epochs:
            self.stop_reason = self.stop_reason or f"max_epochs={self.options.num_epochs:g} reached"
            return True
        if self.progress.step >= self.options.num_steps:
            self.stop_reason = self.stop_reason or f"max_steps={self.options.num_steps:g} reached"
            return True
        if not self.stop_requested:
            return False
        minimum_epochs, minimum_steps = self.options.min_epochs or 0, self.options.min_steps or 0
        epochs_done = self.progress.epoch + (self.progress.settled == EPOCH_ENDED)
        return self.stop_now or (epochs_done >= minimum_epochs and self.progress.step >= minimum_steps)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass with its hooks, in the run's precision and strategy."""
        for hook in self.hooks.on_before_backward:
            hook(loss)
        self.runtime.backward(loss, self.module, *args, **kwargs)
        for hook in self.hooks.on_after_backward:
            hook()

    def toggle(self, optimizer: Any) -> None:
        """Let only the parameters of ``optimizer`` require gradients."""
        self.untoggle()
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for parameter in (p for o in self.optimizers for group in o.param_groups for p in group["params"]):
            self.toggled.setdefault(parameter, parameter.requires_grad)
            if id(parameter) not in own:
                parameter.requires_grad = False

    def untoggle(self) -> None:
        """Undo :meth:`toggle`."""
        for parameter, required in self.toggled.items():
            parameter.requires_grad = required
        self.toggled = {}

    def log_rows(self, call: Callable[[Logger], None]) -> None:
        """Call every logger on rank 0; a logger that fails is reported, and stops the training only if it is required."""
        if self.runtime.is_global_zero:
            call_loggers(self.loggers, call)

    def monitored(self, name: str, wanted_by: str) -> Tensor:
        """The logged value that something monitors.

        Raises:
            ModuleError: It was never logged; the message lists what was.
        """
        values = self.metrics.callback_metrics()
        if name not in values:
            raise ModuleError(f"{wanted_by} monitors {name!r}, which was never logged; logged are: {listing(sorted(values))}")
        return values[name]
