"""Log learning rates, so that a schedule can be seen beside what it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from fulmen.contracts.callback import Callback
from fulmen.errors import ConfigurationError, listing

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from fulmen.contracts.data_hooks import Stage
    from fulmen.contracts.module import Module
    from fulmen.optimizers import SchedulerConfig
    from fulmen.trainer import Trainer

Interval = Literal["step", "epoch"]


class Group(NamedTuple):
    """A parameter group and what its values are called."""

    name: str
    values: dict[str, Any]
    intervals: tuple[Interval, ...]


class LearningRateMonitor(Callback):
    """Logs the learning rate of every parameter group, as it is used by the step that the row is about.

    Names are ``lr-SGD``; ``lr-SGD-1`` for the second optimizer of that class; ``lr-SGD/pg1``, ``lr-SGD/pg2``, ... where it
    has several groups, or ``lr-SGD/<name>`` for a group with a ``"name"``. The ``name`` of a scheduler's configuration takes
    the place of ``lr-SGD``.

    Values go the way of ``module.log``: into the row of the same step or epoch, in order, and on in the same epoch after a
    resume. Those of an epoch are taken when it starts.

    Args:
        logging_interval: ``"step"``: at every logging step; ``"epoch"``: for every epoch. ``None``: as each scheduler's
            interval is; where an optimizer has no scheduler, both.
        log_momentum: Also log ``<name>-momentum``, which is the first of ``betas`` where there are such.
        log_weight_decay: Also log ``<name>-weight_decay``.

    Raises:
        ConfigurationError: ``logging_interval`` is something else.
    """

    def __init__(
        self,
        logging_interval: Interval | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise ConfigurationError(f"logging_interval={logging_interval!r} is not allowed; allowed: 'step', 'epoch', None")
        self.logging_interval, self.log_momentum, self.log_weight_decay = logging_interval, log_momentum, log_weight_decay
        self._groups: list[Group] = []
        self._values: dict[str, list[float | Tensor]] = {}
        self._seen = -1  # the step for which values were logged last
        if logging_interval != "epoch":
            self.on_train_batch_start = self._on_train_batch_start  # type: ignore[method-assign]  # others pay nothing per step

    @property
    def lrs(self) -> dict[str, list[float]]:
        """Name -> the learning rates logged in this run. Waits for the device where a rate is kept there."""
        return {name: [float(value) for value in values] for name, values in self._values.items()}

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Find the names.

        Raises:
            ConfigurationError: There is no logger, or two groups would have the same name.
        """
        if not trainer.loggers:
            raise ConfigurationError(
                "LearningRateMonitor has no logger to send values to: leave out logger=False, or drop the callback"
            )
        self._groups = groups_of(trainer.optimizers, trainer.lr_scheduler_configs, self.logging_interval)
        names = [group.name for group in self._groups]
        if doubled := sorted(name for name, count in Counter(names).items() if count > 1):
            raise ConfigurationError(
                f"LearningRateMonitor would log several values as {listing(doubled)}: give parameter groups and schedulers "
                "different names"
            )
        self._values = {name: [] for name in names}
        self._seen = -1

    def teardown(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Let go of the parameters."""
        self._groups = []

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Log what follows epochs."""
        self._log(module, "epoch")

    def _on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        """Log what follows steps, before a scheduler changes it: once per optimizer step, at logging steps."""
        updates, every = trainer.progress.updates, trainer.options.log_every_n_steps
        if every and (updates + 1) % every == 0 and updates != self._seen:
            self._seen = updates
            self._log(module, "step")

    def _log(self, module: Module, interval: Interval) -> None:
        for group in self._groups:
            if interval not in group.intervals:
                continue
            rate = taken(group.values["lr"])
            self._values[group.name].append(rate)
            found = {group.name: rate}
            if self.log_momentum and (momentum := momentum_of(group.values)) is not None:
                found[f"{group.name}-momentum"] = taken(momentum)
            if self.log_weight_decay and "weight_decay" in group.values:
                found[f"{group.name}-weight_decay"] = taken(group.values["weight_decay"])
            for name, value in found.items():
                module.log(name, value, on_step=interval == "step", on_epoch=interval == "epoch", batch_size=1)


def groups_of(optimizers: list[Optimizer], configs: list[SchedulerConfig], interval: Interval | None) -> list[Group]:
    """The parameter groups of all optimizers, with their names and when they are logged."""
    found, seen = [], Counter[str]()
    for optimizer in optimizers:
        own = [c for c in configs if getattr(c.scheduler, "optimizer", optimizers[0]) is optimizer]
        kind = type(optimizer).__name__
        suffix = f"-{seen[kind]}" if seen[kind] else ""
        seen[kind] += 1
        name = next((config.name for config in own if config.name), f"lr-{kind}{suffix}")
        wanted = {interval} if interval else {config.interval for config in own} or {"step", "epoch"}
        intervals = tuple(each for each in ("step", "epoch") if each in wanted)
        found += [Group(full, values, intervals) for full, values in named_groups(name, optimizer.param_groups)]
    return found


def named_groups(name: str, groups: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each parameter group with its full name."""
    for index, group in enumerate(groups, start=1):
        part = group.get("name", f"pg{index}" if len(groups) > 1 else None)
        yield (name if part is None else f"{name}/{part}"), group


def momentum_of(group: dict[str, Any]) -> float | Tensor | None:
    """The momentum of a parameter group; ``None``: its optimizer has none."""
    return group["betas"][0] if "betas" in group else group.get("momentum")


def taken(value: float | Tensor) -> float | Tensor:
    """``value`` as it is now: optimizers may keep it in a tensor on the device, and change that."""
    return value.detach().clone() if isinstance(value, Tensor) else float(value)
