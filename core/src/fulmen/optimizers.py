"""What ``configure_optimizers`` may return, as one list of optimizers and one of scheduler configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fulmen.errors import ConfigurationError, did_you_mean, listing, warn

if TYPE_CHECKING:
    from fulmen.contracts.module import Module
    from fulmen.state import Run


@dataclass(slots=True)
class SchedulerConfig:
    """A learning-rate scheduler and when it is advanced."""

    scheduler: Any
    interval: Literal["epoch", "step"] = "epoch"
    """Whether ``frequency`` counts epochs or optimizer steps."""
    frequency: int = 1
    """Advance at every so many epochs or steps of the whole training."""
    monitor: str | None = None
    """The logged value that a reduce-on-plateau scheduler watches."""
    strict: bool = True
    """Whether it is an error that ``monitor`` was not logged."""
    name: str | None = None
    """What the learning-rate monitor calls it."""
    reduce_on_plateau: bool = False
    """Whether ``step`` takes the monitored value. Always so for PyTorch's ReduceLROnPlateau."""
    suspended: bool = field(default=False, init=False)
    """Whether it rests, because a callback sets the learning rate instead."""

    def due(self, interval: str, count: int) -> bool:
        """Whether to advance after ``count`` epochs or steps."""
        return self.interval == interval and count % self.frequency == 0 and not self.suspended


def configured_optimizers(module: Module) -> tuple[list[Optimizer], list[SchedulerConfig]]:
    """Call ``module.configure_optimizers`` and sort what it returns.

    Raises:
        ConfigurationError: It returned something else than it may, a key is unknown, or the combination does not work.
    """
    found = module.configure_optimizers()
    optimizers, schedulers = _parse(found)
    if not all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
        wrong = next(optimizer for optimizer in optimizers if not isinstance(optimizer, Optimizer))
        raise ConfigurationError(_wrong(wrong))
    configs = [_config(scheduler) for scheduler in schedulers]
    for config in configs:
        _check(config, optimizers, module)
    if len(optimizers) > 1 and module.automatic_optimization:
        raise ConfigurationError(
            f"configure_optimizers returned {len(optimizers)} optimizers, and automatic optimization works with one: "
            "set self.automatic_optimization = False and step them in training_step"
        )
    if found is None:
        warn("no-optimizer", f"{type(module).__name__}.configure_optimizers returned None: nothing will be updated")
    return optimizers, configs


def _parse(found: Any) -> tuple[list[Any], list[Any]]:
    if found is None:
        return [], []
    if isinstance(found, Optimizer):
        return [found], []
    if isinstance(found, Mapping):
        return _parse_mapping(found)
    if isinstance(found, (list, tuple)):
        if len(found) == 2 and all(isinstance(part, (list, tuple)) for part in found):
            return list(found[0]), list(found[1])
        if found and all(isinstance(part, Mapping) for part in found):
            parsed = [_parse_mapping(part) for part in found]
            return [o for optimizers, _ in parsed for o in optimizers], [s for _, schedulers in parsed for s in schedulers]
        if all(isinstance(part, Optimizer) for part in found):
            return list(found), []
    raise ConfigurationError(_wrong(found))


def _parse_mapping(found: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    allowed = ("optimizer", "lr_scheduler")
    for key in found:
        if key not in allowed:
            hint = "; scheduler settings belong into the dictionary under 'lr_scheduler'" if key in _KEYS else ""
            raise ConfigurationError(
                f"configure_optimizers returned the unknown key {key!r}{did_you_mean(key, allowed)}; "
                f"keys are: {listing(allowed)}{hint}"
            )
    if "optimizer" not in found:
        raise ConfigurationError(f"configure_optimizers returned a dictionary without 'optimizer'; it has: {listing(found)}")
    scheduler = found.get("lr_scheduler")
    return [found["optimizer"]], [] if scheduler is None else [scheduler]


_KEYS = tuple(field.name for field in fields(SchedulerConfig) if field.init)


def _config(found: Any) -> SchedulerConfig:
    if not isinstance(found, Mapping):
        return SchedulerConfig(found, reduce_on_plateau=isinstance(found, ReduceLROnPlateau))
    for key in found:
        if key not in _KEYS:
            raise ConfigurationError(
                f"the lr_scheduler dictionary has the unknown key {key!r}{did_you_mean(key, _KEYS)}; keys are: {listing(_KEYS)}"
            )
    if "scheduler" not in found:
        raise ConfigurationError(f"the lr_scheduler dictionary has no 'scheduler'; it has: {listing(found)}")
    config = SchedulerConfig(**found)
    config.reduce_on_plateau = config.reduce_on_plateau or isinstance(config.scheduler, ReduceLROnPlateau)
    return config


def _check(config: SchedulerConfig, optimizers: list[Optimizer], module: Module) -> None:
    name = type(config.scheduler).__name__
    if config.interval not in ("epoch", "step"):
        raise ConfigurationError(f"lr_scheduler interval={config.interval!r}; allowed are 'epoch' and 'step'")
    if not isinstance(config.frequency, int) or isinstance(config.frequency, bool) or config.frequency < 1:
        raise ConfigurationError(f"lr_scheduler frequency={config.frequency!r} must be a whole number from 1")
    if config.reduce_on_plateau and config.monitor is None and module.automatic_optimization:
        raise ConfigurationError(
            f"{name} needs a metric: return {{'optimizer': ..., 'lr_scheduler': {{'scheduler': ..., 'monitor': 'val_loss'}}}}"
        )
    if not callable(getattr(config.scheduler, "step", None)) or not callable(getattr(config.scheduler, "state_dict", None)):
        raise ConfigurationError(f"{name} is no learning-rate scheduler: it needs step, state_dict and load_state_dict")
    is_known = isinstance(config.scheduler, LRScheduler)
    if is_known and getattr(config.scheduler, "optimizer", None) not in optimizers:
        raise ConfigurationError(f"{name} schedules an optimizer that configure_optimizers does not return; return both")


def _wrong(found: Any) -> str:
    return (
        f"configure_optimizers returned {type(found).__name__}: {str(found)[:80]}; "
        "allowed are an optimizer, a list of them, two lists (optimizers, schedulers), a dictionary with 'optimizer' and "
        "'lr_scheduler', a tuple of such dictionaries, and None"
    )


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether ``optimizer.step`` cannot be called without a closure, as that of LBFGS."""
    parameter = inspect.signature(optimizer.step).parameters.get("closure")
    return parameter is not None and parameter.default is parameter.empty


def advance_schedulers(run: Run, interval: str, plateau: bool | None = None) -> None:
    """Advance the schedulers that are due. With manual optimization, the user does it.

    Args:
        run: The run.
        interval: ``"step"`` after an optimizer step, ``"epoch"`` after an epoch.
        plateau: Only those that reduce on a plateau (``True``), only others (``False``), or both (``None``).
    """
    count = run.progress.updates if interval == "step" else run.progress.epoch + 1
    for config in run.schedulers if run.module.automatic_optimization else ():
        if config.due(interval, count) and plateau in (None, config.reduce_on_plateau):
            _advance(run, config)


def _advance(run: Run, config: SchedulerConfig) -> None:
    metric = None
    if config.reduce_on_plateau and config.monitor is not None:
        owner = f"the scheduler {type(config.scheduler).__name__}"
        if not config.strict and config.monitor not in run.metrics.callback_metrics():
            return warn("monitor-missing", f"{owner} was not advanced, because {config.monitor!r} was not logged")
        metric = run.monitored(config.monitor, owner)
    run.module.lr_scheduler_step(config.scheduler, metric)


def drop_gradients(optimizer: Optimizer) -> None:
    """What ``optimizer.zero_grad()`` does, without its entry in torch's profile, which is a tenth of the smallest step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


class NoOptimizer:
    """Stands in where ``configure_optimizers`` returned ``None``: batches are computed and nothing is updated."""

    param_groups: list[dict[str, Any]] = []  # noqa: RUF012  never changed

    def zero_grad(self) -> None:
        """Nothing to reset."""

    def step(self) -> None:
        """Nothing to update."""


class OptimizerHandle:
    """An optimizer whose ``step`` counts as a step of the run and respects its precision.

    What ``self.optimizers()`` gives with manual optimization. Everything else is the optimizer's own.
    """

    def __init__(self, optimizer: Optimizer, run: Run) -> None:
        self.optimizer = optimizer
        self._run = run

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters."""
        run = self._run
        if run.module.automatic_optimization:  # the step function that called this counts and prepares by itself
            return run.runtime.optimizer_step(self.optimizer, closure)
        if closure is None:
            self._prepare()
            result = run.runtime.optimizer_step(self.optimizer)
        else:
            result = run.runtime.optimizer_step(self.optimizer, lambda: self._prepare(closure()))
        run.progress.step += 1
        return result

    def _prepare(self, loss: Any = None) -> Any:
        self._run.runtime.precision.unscale(self.optimizer)
        for hook in self._run.hooks.on_before_optimizer_step:
            hook(self.optimizer)
        return loss

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Let only this optimizer's parameters require gradients; without exchange of them where ``sync_grad`` is ``False``."""
        self._run.toggle(self.optimizer)
        try:
            with self._run.runtime.no_sync(self._run.module, enabled=not sync_grad):
                yield
        finally:
            self._run.untoggle()

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # while it is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __repr__(self) -> str:
        return f"OptimizerHandle({self.optimizer!r})"
